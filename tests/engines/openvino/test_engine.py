"""The contract and the particulars of the embedded engine, on a GGUF model with random weights."""

import asyncio
import os
import signal

import pytest
import pytest_asyncio
from msgspec.structs import replace

from penstock import demo
from penstock.engines import worker_engine
from penstock.engines.openvino.engine import OpenVINOEngine
from penstock.engines.process import EngineProcess
from penstock.engines.tasks import Mailbox
from penstock.errors import (
    ConfigError,
    ContextLengthError,
    EngineDeadError,
    EngineError,
    EngineStartError,
    ModelNotFoundError,
    UnsupportedError,
)
from penstock.testing import EngineContract, answer, chat_request
from penstock.types import CompletionRequest, Sampling
from random_model import TINY, write_random_model

OPTIONS = {
    "max_num_seqs": 16,
    "deterministic": True,
    "num_threads": 1,
    "kv_cache_memory_bytes": 64 << 20,
}


@pytest.fixture(scope="module")
def gguf(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    write_random_model(path, TINY)
    return str(path)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(gguf):
    engine = OpenVINOEngine(gguf, engine_kwargs=OPTIONS)
    await engine.start()
    yield engine
    await engine.stop()


class TestContract(EngineContract):
    async def kill(self, engine):
        os.kill(engine._process.pid, signal.SIGKILL)
        return True

    async def test_the_worker_leaves_with_its_engine(self, engine):
        pid = engine._process.pid
        await engine.stop()
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
        await engine.start()

    async def test_sleep_gives_the_process_back_and_wakeup_returns_the_same_answers(self, engine):
        before = await answer(engine, chat_request(self.prompt))
        await engine.sleep()
        assert await engine.is_sleeping()
        assert engine._process is None
        await engine.check_health()
        await engine.wakeup()
        assert (await answer(engine, chat_request(self.prompt))).texts == before.texts

    async def test_gguf_models_have_no_adapters(self, engine, tmp_path):
        (tmp_path / "adapter_config.json").write_text('{"r": 8, "lora_alpha": 16}')
        (tmp_path / "adapter_model.safetensors").write_bytes(b"")
        with pytest.raises(UnsupportedError, match="GGUF"):
            await engine.resolve_lora("a", str(tmp_path))

    async def test_reset_prefix_cache_forgets(self, engine):
        text = self.prompt * 4
        await answer(engine, chat_request(text))
        await engine.reset_prefix_cache()
        assert (await answer(engine, chat_request(text))).usage.cached_tokens == 0

    async def test_followers_of_a_prefix_wait_for_it_and_hit(self, engine):
        await engine.reset_prefix_cache()
        shared = "The one long instruction that every row begins with. " * 8
        requests = [
            chat_request(f"{shared} {n}", Sampling(temperature=0, max_tokens=4), stream=False)
            for n in range(12)
        ]
        results = await asyncio.gather(*(answer(engine, request) for request in requests))
        assert sum(result.usage.cached_tokens == 0 for result in results) == 1

    async def test_a_prompt_larger_than_the_cache_is_refused(self, gguf):
        small = OpenVINOEngine(
            gguf, engine_kwargs={**OPTIONS, "kv_cache_memory_bytes": 1 << 20, "max_model_len": 8192}
        )
        await small.start()
        try:
            with pytest.raises(ContextLengthError, match="kv_cache_memory_bytes"):
                await answer(small, CompletionRequest([7] * 5000, Sampling(max_tokens=2)))
        finally:
            await small.stop()


async def test_whoever_asks_while_it_starts_is_answered(gguf):
    engine = OpenVINOEngine(gguf, engine_kwargs=OPTIONS)
    starting = asyncio.create_task(engine.start())
    while engine._process is None:  # noqa: ASYNC110 - the worker has read nothing yet
        await asyncio.sleep(0)
    await asyncio.gather(starting, engine.check_health(), engine.start(), answered(engine))
    await engine.stop()


async def test_one_that_is_stopped_can_be_started_at_once(gguf):
    engine = OpenVINOEngine(gguf, engine_kwargs=OPTIONS)
    await engine.start()
    under_way = asyncio.create_task(engine.check_health())
    await asyncio.sleep(0)
    stopping = asyncio.create_task(engine.stop())
    await asyncio.sleep(0)
    await engine.start()
    await stopping
    with pytest.raises(EngineDeadError):
        await under_way
    await answered(engine)
    await engine.stop()


async def test_one_that_is_stopped_while_it_answers_ends_without_a_word(capfd, gguf):
    engine = OpenVINOEngine(gguf, engine_kwargs=OPTIONS)
    await engine.start()
    deltas = engine.generate(CompletionRequest([7] * 5, Sampling(max_tokens=100, ignore_eos=True)))
    await anext(deltas)
    await engine.stop()
    assert capfd.readouterr() == ("", "")


@pytest.fixture
def killed_starts(monkeypatch):
    """How many of the next starts are killed while they load."""
    starts = [0]
    start_process = EngineProcess.start

    async def start(self):
        await start_process(self)
        if starts[0]:
            starts[0] -= 1
            self.kill()

    monkeypatch.setattr(EngineProcess, "start", start)
    return starts


async def test_one_that_is_killed_while_it_starts_is_started_again(gguf, killed_starts):
    engine = OpenVINOEngine(gguf, engine_kwargs=OPTIONS)
    killed_starts[0] = 2
    await answered(engine)
    await engine.stop()
    killed_starts[0] = 4
    with pytest.raises(EngineStartError, match=r"could not be loaded in 3 tries: .* SIGKILL"):
        await engine.start()
    assert killed_starts[0] == 1
    assert engine._process is None


async def test_one_that_is_stopped_while_it_starts_stays_stopped(gguf):
    engine = OpenVINOEngine(gguf, engine_kwargs=OPTIONS)
    starting = asyncio.create_task(engine.start())
    while engine._process is None:  # noqa: ASYNC110 - it is on its way
        await asyncio.sleep(0)
    await engine.stop()
    with pytest.raises(EngineStartError, match="could not be loaded: "):
        await starting
    assert engine._process is None


async def test_one_that_hangs_is_noticed_and_can_be_started_again(gguf, monkeypatch):
    monkeypatch.setattr(worker_engine, "LOOK_SECONDS", 0.02)
    engine = OpenVINOEngine(gguf, engine_kwargs=OPTIONS)
    await answered(engine)
    lost = engine._mailboxes[10**6] = Mailbox()  # a request that the worker does not know of
    with pytest.raises(EngineDeadError, match="the engine process hung"):
        await lost.take()
    with pytest.raises(EngineDeadError):
        await engine.check_health()
    await answered(engine)
    await engine.stop()


async def answered(engine):
    await engine.start()
    await answer(engine, CompletionRequest([7], Sampling(max_tokens=2)))


async def test_a_missing_model_is_named(tmp_path):
    with pytest.raises(EngineStartError, match=r"nothing\.gguf"):
        await OpenVINOEngine(str(tmp_path / "nothing.gguf")).start()


async def test_a_damaged_model_is_one_line(tmp_path):
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"GGUF" + b"\0" * 40)
    with pytest.raises(EngineStartError) as caught:
        await OpenVINOEngine(str(path)).start()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        ({"max_num_seq": 4}, "Did you mean 'max_num_seqs'"),
        ({"kv_cache_precision": "f8"}, "engine_kwargs.kv_cache_precision"),
        ({"num_threads": -1}, "engine_kwargs.num_threads"),
        ({"prompt_lookup": True, "draft_model": "x"}, "not both"),
    ],
)
def test_wrong_options_are_known_before_anything_starts(options, hint):
    with pytest.raises(ConfigError, match=hint):
        OpenVINOEngine("demo", engine_kwargs=options)


def test_one_thread_takes_full_precision():
    assert (
        OpenVINOEngine("demo", engine_kwargs={"num_threads": 1}).options.inference_precision
        == "f32"
    )


async def test_an_adapter_in_use_is_not_removed():
    engine = OpenVINOEngine("demo", engine_kwargs={"num_threads": 1})
    await engine.start()
    try:
        await engine.resolve_lora("german", str(demo.adapter_path("german")))
        long = Sampling(temperature=0, max_tokens=400, ignore_eos=True)
        stream = engine.chat(replace(chat_request("Hello.", long), adapter="german"))
        await anext(stream)
        with pytest.raises(EngineError, match="'german' is in use"):
            await engine.remove_lora("german")
        *_, last = [delta async for delta in stream]
        assert last.usage is not None
        assert last.usage.completion_tokens == 400
        await engine.remove_lora("german")
        with pytest.raises(ModelNotFoundError):
            await engine.remove_lora("german")
    finally:
        await engine.stop()
