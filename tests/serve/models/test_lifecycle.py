"""An engine's start, its failures, its death and what comes after."""

import asyncio
from typing import Any

import pytest

from penstock.engines.simulated.engine import SimulatedEngine
from penstock.errors import (
    ConfigError,
    EngineDeadError,
    EngineStartError,
    EngineTimeoutError,
    OverloadedError,
    QuarantinedError,
)
from penstock.serve.models import server as server_module
from penstock.serve.models.server import LLMServer, make_engine
from penstock.types import ChatRequest, EmbeddingRequest
from scripted_server import ASK, Scripted, begun, config, limits, settle, texts

OTHER = ChatRequest([{"role": "user", "content": "Good morning"}])


async def test_the_engine_class_may_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("PENSTOCK_ENGINE_CLS", "penstock.engines.simulated.engine:SimulatedEngine")
    assert type(LLMServer(config(llm_engine="vllm")).engine) is SimulatedEngine
    monkeypatch.setenv("PENSTOCK_ENGINE_CLS", "penstock.nowhere:Engine")
    with pytest.raises(ConfigError, match="PENSTOCK_ENGINE_CLS"):
        LLMServer(config())


def test_an_unknown_engine_is_refused_before_anything_is_loaded():
    with pytest.raises(ConfigError, match="llm_engine"):
        LLMServer(config(llm_engine="vllmm"))
    with pytest.raises(ConfigError, match=r"engine_kwargs\.output_token"):
        LLMServer(config(engine_kwargs={"output_token": 3}))


async def test_a_start_takes_no_longer_than_allowed():
    engine = Scripted()
    engine.may_start.clear()
    server = LLMServer(config(experimental_configs={"start_timeout_s": 1e-9}), engine=engine)
    with pytest.raises(EngineTimeoutError, match="waited 1e-09 s"):
        await server.start()
    assert server.state().state == "failed"
    assert "waited 1e-09 s" in server.state().reason


async def test_callers_wait_while_it_loads_in_order_and_bounded():
    engine = Scripted()
    engine.may_start.clear()
    engine.go_on.set()
    server = LLMServer(config(deployment_config=limits(5, 2)), engine=engine, load_on_demand=True)
    assert server.state().state == "cold"
    waiting = [asyncio.create_task(texts(server.chat(ASK))) for _ in range(2)]
    await settle()
    assert (server.state().state, server.state().waiting, engine.starts) == ("loading", 2, 1)
    with pytest.raises(OverloadedError):
        await texts(server.chat(ASK))
    engine.may_start.set()
    assert await asyncio.gather(*waiting) == ["ab", "ab"]
    assert engine.starts == 1
    await server.stop()


async def test_a_failed_start_is_told_to_all_and_tried_again_later(monkeypatch):
    monkeypatch.setattr(server_module, "RETRY_DELAYS_S", (3600.0,))
    engine = Scripted()
    engine.go_on.set()
    engine.start_errors = [EngineStartError("no such file"), ValueError("odd")]
    server = LLMServer(config(), engine=engine, load_on_demand=True)
    waiting = [asyncio.create_task(texts(server.chat(ASK))) for _ in range(2)]
    for result in await asyncio.gather(*waiting, return_exceptions=True):
        assert isinstance(result, EngineStartError)
        assert "no such file" in str(result)
    assert server.state().state == "failed"
    assert "no such file" in server.state().reason
    with pytest.raises(EngineStartError, match="no such file") as early:  # not before its time
        await texts(server.chat(ASK))
    assert early.value.retry_after == pytest.approx(3600, abs=60)
    assert engine.starts == 1
    server.supervisor._retry_at = 0.0
    with pytest.raises(EngineStartError, match="ValueError: odd"):
        await texts(server.chat(ASK))
    server.supervisor._retry_at = 0.0
    assert await texts(server.chat(ASK)) == "ab"
    assert (server.state().state, server.state().reason) == ("ready", "")
    await server.stop()


# Death
async def test_a_dead_engine_is_started_again_and_unseen_requests_are_tried_once_more(started):
    engine = Scripted()
    engine.go_on.set()
    server = await started(engine)
    engine.silent_deaths = 1
    assert await texts(server.chat(ASK)) == "ab"
    # The second saw whether the new engine lives at all.
    assert (engine.starts, len(engine.seen)) == (2, 3)


async def test_a_stream_that_had_begun_ends_with_the_death_and_others_go_on(started):
    server = await started()
    streams = [await begun(server) for _ in range(3)]
    server.engine.kill()
    for result in await asyncio.gather(*streams, return_exceptions=True):
        assert isinstance(result, EngineDeadError)
    server.engine.go_on.set()
    assert await texts(server.chat(ASK)) == "ab"
    assert server.engine.starts == 2  # once for all three


async def test_an_engine_that_dies_while_nobody_asks_is_started_again(started):
    server = await started()
    server.engine.kill()
    server.engine.on_death()
    assert server.state().state == "loading"
    await server.supervisor.ready()
    assert (server.state().state, server.state().restarts) == ("ready", 1)
    await server.unload()
    server.engine.on_death()
    assert server.state().state == "cold"


async def test_an_engine_that_dies_between_requests_is_not_noticed_by_the_next(started):
    server = await started()
    server.engine.go_on.set()
    server.engine.kill()
    assert await server.embeddings(EmbeddingRequest(["x"]))
    assert await texts(server.chat(ASK)) == "ab"
    assert server.engine.starts == 2


async def test_a_request_that_kills_every_engine_is_given_up_and_refused_from_then_on(started):
    server = await started()
    server.engine.go_on.set()
    server.engine.fatal = "Hello"
    for starts in (3, 3):
        with pytest.raises(QuarantinedError, match="change its prompt or its parameters"):
            await texts(server.chat(ASK))
        assert server.engine.starts == starts
    assert await texts(server.chat(OTHER)) == "ab"


async def test_an_engine_that_only_dies_has_failed(started, monkeypatch):
    monkeypatch.setattr(server_module, "RESTART_DELAYS_S", (0.0, 0.0, 0.0))
    server = await started()
    server.engine.silent_deaths = 10
    with pytest.raises(EngineStartError):
        await texts(server.chat(ASK))
    assert server.state().state == "failed"
    with pytest.raises((EngineStartError, EngineDeadError)):
        await texts(server.chat(OTHER))


async def test_a_restart_that_fails_is_tried_again(started):
    server = await started()
    server.engine.go_on.set()
    server.engine.start_errors = [EngineStartError("busy")]
    server.engine.silent_deaths = 1
    assert await texts(server.chat(ASK)) == "ab"
    assert server.engine.starts == 3


def test_a_tokenizer_of_its_own_is_refused_by_an_engine_that_takes_none(tmp_path):
    loading = {"model_id": "m", "model_source": "a", "tokenizer_source": "b"}
    with pytest.raises(
        ConfigError, match=r"tokenizer_source: the simulated engine takes no tokenizer"
    ):
        LLMServer(config(model_loading_config=loading))
    LLMServer(config(model_loading_config={**loading, "tokenizer_source": "a"}))  # the model's own
    engine: Any = LLMServer(config(model_loading_config=loading, llm_engine="openvino")).engine
    assert engine.options.tokenizer == "b"


async def test_starts_and_restarts_are_counted(started):
    server = await started()
    server.engine.go_on.set()
    server.engine.silent_deaths = 1
    assert await texts(server.chat(ASK)) == "ab"
    assert (server.state().loads, server.state().restarts) == (2, 1)


@pytest.mark.parametrize("wanted", [True, False])
async def test_what_the_engine_counts_is_told_if_it_is_wanted(started, wanted):
    server = await started(log_engine_metrics=wanted)
    counts = {"steps": 0, "requests_running": 0, "requests_waiting": 0}
    assert await server.engine_metrics() == (counts if wanted else {})
    await server.sleep()
    assert await server.engine_metrics() == {}


def test_determinism_reaches_the_engine_or_is_refused_by_name():
    assert make_engine(config(deterministic=True)).deterministic
    assert not make_engine(config()).deterministic
    remote = {"llm_engine": "remote", "engine_kwargs": {"base_url": "http://127.0.0.1:9/v1"}}
    with pytest.raises(ConfigError, match=r"^deterministic: the remote engine cannot promise it"):
        make_engine(config(deterministic=True, **remote))
    with pytest.raises(ConfigError, match=r"engine_kwargs\.deterministic: does not go together"):
        make_engine(config(deterministic=True, engine_kwargs={"deterministic": False}))
