"""Ray's variables of the environment, as defaults of ours."""

import os

import pytest

from penstock import env
from penstock.errors import ConfigError
from penstock.llm_config import DeploymentConfig, LLMConfig, LoraConfig
from penstock.serve.config.placement import deployment_options


@pytest.fixture
def config():
    return lambda **fields: LLMConfig(**{"model_loading_config": {"model_id": "m"}, **fields})


def test_defaults_of_a_model(config, monkeypatch):
    monkeypatch.setenv("RAYLLM_ENGINE_START_TIMEOUT_S", "90")
    monkeypatch.setenv("RAYLLM_MODEL_RESPONSE_BATCH_TIMEOUT_MS", "25")
    assert (config().start_timeout_s, config().stream_batching_interval_s) == (90, 0.025)
    own = config(experimental_configs={"start_timeout_s": 1, "stream_batching_interval_ms": 2})
    assert (own.start_timeout_s, own.stream_batching_interval_s) == (1, 0.002)
    monkeypatch.setenv("RAYLLM_ENGINE_START_TIMEOUT_S", "soon")
    with pytest.raises(ConfigError, match="RAYLLM_ENGINE_START_TIMEOUT_S: must be a number"):
        config()


def test_defaults_of_adapters(monkeypatch):
    monkeypatch.setenv("DEFAULT_MULTIPLEX_DOWNLOAD_TIMEOUT_S", "0")
    monkeypatch.setenv("DEFAULT_MULTIPLEX_DOWNLOAD_RETRIES", "7")
    assert (LoraConfig().download_timeout_s, LoraConfig().max_download_tries) == (None, 7)


def test_defaults_of_a_deployment(config, monkeypatch):
    assert "health_check_period_s" not in deployment_options(config())
    monkeypatch.setenv("RAY_SERVE_LLM_DEFAULT_HEALTH_CHECK_PERIOD_S", "5")
    monkeypatch.setenv("RAY_SERVE_LLM_DEFAULT_HEALTH_CHECK_TIMEOUT_S", "6")
    monkeypatch.setenv("RAY_SERVE_LLM_DEFAULT_MAX_ONGOING_REQUESTS", "9")
    monkeypatch.setenv("RAY_SERVE_LLM_DEFAULT_MAX_TARGET_ONGOING_REQUESTS", "8")
    assert DeploymentConfig().max_ongoing_requests == 9
    options = deployment_options(config())
    assert (options["health_check_period_s"], options["health_check_timeout_s"]) == (5, 6)
    assert env.target_ongoing_requests() == 8


def test_the_class_of_engines(monkeypatch):
    monkeypatch.delenv("PENSTOCK_ENGINE_CLS", raising=False)
    assert env.engine_cls() is None
    monkeypatch.setenv("RAYLLM_VLLM_ENGINE_CLS", "theirs:Engine")
    assert env.engine_cls() == ("RAYLLM_VLLM_ENGINE_CLS", "theirs:Engine")
    monkeypatch.setenv("PENSTOCK_ENGINE_CLS", "ours:Engine")
    assert env.engine_cls() == ("PENSTOCK_ENGINE_CLS", "ours:Engine")


@pytest.mark.parametrize("value", ["nan", "inf", "-1", "1e300", "soon"])
def test_a_number_that_cannot_be_meant_is_refused(monkeypatch, value):
    name = "RAY_SERVE_LLM_DEFAULT_MAX_ONGOING_REQUESTS"
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=f"^{name}: must be a number from 0 to .*'{value}'"):
        env.max_ongoing_requests()


def test_a_variable_that_is_almost_known_is_told(monkeypatch):
    for name in [name for name in os.environ if name.startswith("PENSTOCK_")]:
        monkeypatch.delenv(name)
    for name in ("CACHE_DIR", "API_KEY", "SERVICE_HOST", "PORT", "PORT_8000_TCP", "MODELS"):
        monkeypatch.setenv(f"PENSTOCK_{name}", "x")
    assert env.misspelt() == []
    monkeypatch.setenv("PENSTOCK_CACHEDIR", "x")
    monkeypatch.setenv("PENSTOCK_APIKEYS", "x")
    assert sorted(env.misspelt()) == [
        ("PENSTOCK_APIKEYS", "PENSTOCK_API_KEYS"),
        ("PENSTOCK_CACHEDIR", "PENSTOCK_CACHE_DIR"),
    ]
