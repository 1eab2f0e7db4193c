"""What ends with a running vLLM, or with one request to it; its engine core is none here."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from penstock.engines.vllm.engine import VLLMEngine
from penstock.errors import EngineDeadError, EngineStartError, RequestError
from penstock.kv.cached_blocks import CachedBlocks

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]


@pytest.fixture
def running():
    from penstock.engines.vllm import running

    return running


def front(**parts: Any) -> Any:
    died = asyncio.get_running_loop().create_future()
    return SimpleNamespace(
        alive=True,
        died=died,
        closed=0,
        watch=lambda: None,
        why_dead=lambda: "it ended",
        fail_requests=lambda: died.set_result(None),
        close=lambda: None,
        **parts,
    )


@pytest.mark.parametrize("alive", [True, False])
async def test_those_in_an_engine_are_suspects_only_if_it_died(alive):
    engine, waits = VLLMEngine("demo"), asyncio.Event().wait
    one: Any = SimpleNamespace(front=front(), events=None, llm=SimpleNamespace(check_health=waits))
    engine._running = one
    asked = asyncio.create_task(engine.check_health())
    await asyncio.sleep(0)
    one.front.alive = alive
    await engine.stop()
    with pytest.raises(EngineDeadError) as ended:
        await asked
    assert ended.value.suspects is not alive


async def test_a_start_that_fails_reads_no_events_any_more(running, monkeypatch, tmp_path):
    def fails():
        raise EngineStartError("no tokenizer")

    monkeypatch.setattr(running, "Prompts", lambda front: SimpleNamespace(learn=fails))
    made = front(
        llm=None,
        config=SimpleNamespace(lora_config=None, scheduler_config=SimpleNamespace(policy="fcfs")),
        options=SimpleNamespace(
            cpu=True, engine={"kv_events_config": {"endpoint": f"ipc://{tmp_path}/x:1000"}}
        ),
    )

    class Starting:
        async def in_thread(self):
            return made

    with pytest.raises(EngineStartError, match="no tokenizer"):
        await running.Running.start(Starting(), "m", CachedBlocks())
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_text_that_fails_ends_the_others(running, monkeypatch):
    monkeypatch.setattr(
        running, "PoolingParams", lambda **_: SimpleNamespace(verify=lambda model: None)
    )
    ended, begun = [], asyncio.Event()

    async def completion(text):
        if text == "bad":
            await begun.wait()
            raise RequestError("too long")
        return text

    async def encode(prompt, params, name):
        begun.set()
        try:
            yield await asyncio.Event().wait()
        finally:
            ended.append(name)

    one = running.Running.__new__(running.Running)
    one.front = SimpleNamespace(config=SimpleNamespace(model_config=None))
    one.prompts, one.llm = SimpleNamespace(completion=completion), SimpleNamespace(encode=encode)
    with pytest.raises(RequestError, match="too long"):
        await one._pooled(["good", "bad"], "r", task="embed")
    assert ended == ["r-0"]
