"""Configurations of processors: names, defaults and mistakes, as users of `ray.data.llm` know
them.
"""

import pickle

import pytest

from penstock.batch import (
    ChatTemplateStageConfig,
    HttpRequestProcessorConfig,
    OpenVINOEngineProcessorConfig,
    PrepareMultimodalStageConfig,
    ProcessorConfig,
    ServeDeploymentProcessorConfig,
    SGLangEngineProcessorConfig,
    build_processor,
    vLLMEngineProcessorConfig,
)
from penstock.batch.job.identity import shown
from penstock.batch.pipeline.configs import stage_config
from penstock.engines.simulated.engine import SimulatedEngine
from penstock.errors import ConfigError


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"engine": "shared"}, "^deterministic: say in model_source"),
        ({"engine": SimulatedEngine()}, "^deterministic: has no meaning beside an engine object"),
        (
            {"model_source": "demo", "engine_kwargs": {"deterministic": False}},
            "engine_kwargs.deterministic: does not",
        ),
    ],
)
def test_determinism_where_it_cannot_be_had(given, told):
    with pytest.raises(ConfigError, match=told):
        build_processor(OpenVINOEngineProcessorConfig(deterministic=True, **given))


def test_an_engine_is_told_no_task():
    given = {"task_type": "embed", "seed": 1}
    made = vLLMEngineProcessorConfig(model_source="m", task_type="embed", engine_kwargs=given)
    assert (made.engine_kwargs, given) == ({"seed": 1}, {"task_type": "embed", "seed": 1})
    with pytest.raises(ConfigError, match=r"engine_kwargs.task_type: .* which is 'generate'"):
        vLLMEngineProcessorConfig(model_source="m", engine_kwargs={"task_type": "embed"})
    with pytest.raises(ConfigError, match=r"engine_kwargs.task: "):
        SGLangEngineProcessorConfig(model_source="m", engine_kwargs={"task": "embed"})


def test_a_dtype_is_a_class():
    with pytest.raises(ConfigError, match=r"dtype_mapping.Chat: must be a class"):
        ServeDeploymentProcessorConfig(deployment_name="d", dtype_mapping={"Chat": "Chat"})


def test_defaults_are_those_that_users_know():
    engine = vLLMEngineProcessorConfig(model_source="m")
    assert (engine.batch_size, engine.concurrency, engine.task_type) == (32, 1, "generate")
    assert (engine.max_concurrent_batches, engine.max_pending_requests) == (8, None)
    assert (engine.chat_template_stage, engine.tokenize_stage, engine.detokenize_stage) == (
        True,
        True,
        True,
    )
    assert (engine.prepare_multimodal_stage, engine.should_continue_on_error) == (False, False)
    http = HttpRequestProcessorConfig(url="http://127.0.0.1/")
    assert (http.batch_size, http.max_retries, http.base_retry_wait_time_in_s, http.qps) == (
        64,
        0,
        1,
        None,
    )
    assert ServeDeploymentProcessorConfig(deployment_name="d").app_name == "default"
    assert PrepareMultimodalStageConfig().chat_template_content_format == "string"


def test_a_configuration_can_be_pickled():
    config = OpenVINOEngineProcessorConfig(
        model_source="m", concurrency=(1, 2), chat_template_stage={"batch_size": 2}
    )
    assert pickle.loads(pickle.dumps(config)) == config


def vllm(**options):
    return vLLMEngineProcessorConfig(model_source="m", **options)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: vllm(batch_sise=1), "Did you mean 'batch_size'?"),
        (lambda: vllm(batch_size=0), "batch_size: must be at least 1, got 0"),
        (
            lambda: vllm(task_type="embedding"),
            "task_type: there is no 'embedding'. Did you mean 'embed'?",
        ),
        (lambda: vllm(on_invalid_json="x"), "on_invalid_json: there is no 'x'. Known: keep, retry"),
        (lambda: vLLMEngineProcessorConfig(), "model_source: say which model"),
        (
            lambda: vllm(placement_group_config={"bundls": []}),
            "placement_group_config.bundls: unknown key",
        ),
        (
            lambda: vllm(placement_group_config={"strategy": "PACK"}),
            "give exactly one of bundle_per_worker and bundles",
        ),
        (lambda: vllm(concurrency=(1,)), "concurrency"),
        (lambda: vllm(concurrency=(2, 1)), "concurrency: the least must not be more than the most"),
        (lambda: ProcessorConfig(concurrency=(2, 1)), "concurrency: the least"),
        (lambda: ChatTemplateStageConfig(concurrency=(2, 1)), "concurrency: the least"),
        (lambda: HttpRequestProcessorConfig(**{}), "url"),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(ConfigError) as error:
        make()
    assert message in str(error.value)


def test_secrets_are_not_shown():
    config = HttpRequestProcessorConfig(
        url="http://u:p@h/?key=xyz", headers={"Authorization": "Bearer abc"}
    )
    assert "abc" not in repr(config)
    assert "u:p" not in repr(config)
    assert "xyz" not in repr(config)


def test_a_type_of_your_own():
    class Mine(ProcessorConfig, kw_only=True):
        where: str

    assert Mine(where="x", batch_size=3).batch_size == 3
    wrong: dict = {"were": "x"}
    with pytest.raises(ConfigError, match=r"unknown key 'were'. Did you mean 'where'"):
        Mine(**wrong)


def test_a_stage_field():
    kind = ChatTemplateStageConfig
    assert stage_config(kind, True, "f") == kind()
    assert stage_config(kind, False, "f") is None
    assert stage_config(kind, {"batch_size": 2}, "f") == kind(batch_size=2)
    assert stage_config(kind, kind(enabled=False), "f") is None
    with pytest.raises(ConfigError, match=r"f: chat_templat: unknown key"):
        stage_config(kind, {"chat_templat": "x"}, "f")
    with pytest.raises(ConfigError, match="f: must be true, false"):
        stage_config(kind, 3, "f")


def test_what_a_configuration_says():
    config = HttpRequestProcessorConfig(
        url="http://h/", session_factory=pytest.raises, batch_size=3
    )
    assert shown(config) == {
        "url": "http://h/",
        "batch_size": 3,
        "session_factory": "_pytest.raises.raises",
    }
