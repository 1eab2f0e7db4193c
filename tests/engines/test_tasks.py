"""Whoever overrides a method of a task, or implements `generate`, `answer` and `control`: both are
asked.
"""

import asyncio

import pytest

from penstock.engines.base import Capabilities, LLMEngine
from penstock.engines.simulated.engine import SimulatedEngine
from penstock.engines.tasks import (
    TASKS,
    BatchedDeltas,
    Mailbox,
    Operations,
    Tasks,
    generated,
    in_batches,
    mapped,
)
from penstock.errors import EngineDeadError, UnsupportedError
from penstock.serve.models.control import METHODS
from penstock.serve.models.data_parallel import EngineGroup
from penstock.serve.models.local import LocalModel
from penstock.serve.models.server import LLMServer
from penstock.testing import answer, chat_request
from penstock.types import (
    ClassifyRequest,
    Delta,
    EmbeddingRequest,
    Embeddings,
    RerankRequest,
    Scores,
    Usage,
)
from scripted_server import config

END = Delta(text="own", finish_reason="stop", usage=Usage(1, 1))


class ByMethods(LLMEngine):
    """An engine that overrides the methods that it has."""

    name = "own"
    capabilities = Capabilities(frozenset({"chat", "score", "rerank", "embeddings"}), 100, 4)

    async def start(self):
        pass

    async def stop(self):
        pass

    async def check_health(self):
        pass

    async def chat(self, request):
        yield END

    async def rerank(self, request):
        return Scores([1.0] * len(request.documents))

    async def embeddings(self, request):
        return Embeddings([[1.0]])

    async def reset_prefix_cache(self):
        self.was_reset = True


class Loud(SimulatedEngine):
    """An engine of ours of which a method is overridden."""

    async def chat(self, request):
        async for delta in super().chat(request):
            yield Delta(
                delta.index,
                delta.text.upper(),
                finish_reason=delta.finish_reason,
                usage=delta.usage,
            )

    async def tokenize(self, text):
        return [len(text)]


class LoudServer(LLMServer):
    """As users of Ray write servers."""

    async def chat(self, request):
        async for delta in super().chat(request):
            yield Delta(
                delta.index,
                delta.text.upper(),
                finish_reason=delta.finish_reason,
                usage=delta.usage,
            )

    async def embeddings(self, request):
        found = await super().embeddings(request)
        return Embeddings([vector[:1] for vector in found.vectors])


def test_each_task_and_each_operation_is_a_method():
    assert set(TASKS) == {name for name in vars(Tasks) if not name.startswith("_")} - {
        "generate",
        "answer",
    }
    adapters = {"load_lora_adapter", "unload_lora_adapter"}
    of_servers = {"check_health", "load_model", "unload_model", *adapters}
    assert set(METHODS) - of_servers == {n for n in vars(Operations) if not n.startswith("_")} - {
        "control"
    }


async def test_an_engine_of_methods_answers_through_every_layer():
    engine = ByMethods("m")
    for model in (engine, EngineGroup([engine]), LocalModel(config(), engine=engine)):
        await model.start()
        assert [batch async for batch in generated(model, chat_request("x"))] == [[END]]
        assert (await model.score(RerankRequest("a", ["b", "c"]))).scores == [1.0, 1.0]
        assert (await model.embeddings(EmbeddingRequest(["a"]))).vectors == [[1.0]]


async def test_an_engine_of_methods_lacks_the_others():
    engine = ByMethods("m")
    assert engine.brings("reset_prefix_cache")
    assert not engine.brings("sleep")
    assert await engine.is_sleeping() is await engine.is_paused() is False
    for lacked in (engine.classify(ClassifyRequest(["a"])), engine.pause(), engine.tokenize("a")):
        with pytest.raises(
            UnsupportedError, match=r"the own engine does not support (classify|pause|tokenize)"
        ):
            await lacked
    model = LocalModel(config(), engine=engine)
    await model.start()
    (result,) = await model.control("reset_prefix_cache", {})
    assert result["ok"]
    assert engine.was_reset


async def test_an_override_of_an_engine_is_asked_by_the_layers_above():
    plain = (await answer(await _running(SimulatedEngine()), chat_request("x"))).texts[0]
    for model in (EngineGroup([Loud()]), LocalModel(config(), engine=Loud())):
        await model.start()
        assert (await answer(model, chat_request("x"))).texts[0] == plain.upper() != plain
        assert await model.tokenize("abc") == [3]


async def test_an_override_of_a_server_is_asked_by_the_handle():
    plain, loud = LocalModel(config()), LocalModel(config(server_cls=LoudServer))
    await plain.start()
    await loud.start()
    text = (await answer(plain, chat_request("x"))).texts[0]
    assert (await answer(loud, chat_request("x"))).texts[0] == text.upper() != text
    assert [len(vector) for vector in (await loud.embeddings(EmbeddingRequest(["a"]))).vectors] == [
        1
    ]


async def _running(engine):
    await engine.start()
    return engine


A, B, C = Delta(text="a"), Delta(text="b"), Delta(text="c", finish_reason="stop")


class Source:
    def __init__(self, *batches):
        self._batches = batches
        self.closed = False

    async def batches(self):
        try:
            for batch in self._batches:
                if isinstance(batch, Exception):
                    raise batch
                yield batch
        finally:
            self.closed = True


async def one_by_one():
    for delta in (A, B, C):
        yield delta


async def test_batches_are_read_one_by_one():
    assert [delta async for delta in BatchedDeltas(Source([A, B], [C]).batches())] == [A, B, C]


async def test_batches_stay_together_between_layers():
    assert [batch async for batch in in_batches(BatchedDeltas(Source([A, B], [C]).batches()))] == [
        [A, B],
        [C],
    ]


async def test_a_plain_generator_gives_batches_of_one():
    assert [batch async for batch in in_batches(one_by_one())] == [[A], [B], [C]]


async def test_mapping_keeps_batches():
    def upper(delta):
        return Delta(text=delta.text.upper())

    changed = mapped(Source([A, B], [C]).batches(), upper)
    assert [[delta.text for delta in batch] async for batch in changed] == [["A", "B"], ["C"]]


async def test_an_error_comes_after_what_came_before_it():
    deltas = BatchedDeltas(Source([A, B], ValueError("broken")).batches())
    assert [await anext(deltas), await anext(deltas)] == [A, B]
    with pytest.raises(ValueError, match="broken"):
        await anext(deltas)


@pytest.mark.parametrize(
    "wrap", [lambda batches: batches, lambda batches: mapped(batches, lambda delta: delta)]
)
async def test_closing_early_closes_the_source(wrap):
    source = Source([A, B], [C])
    deltas = BatchedDeltas(wrap(source.batches()))
    assert await anext(deltas) == A
    await deltas.aclose()
    assert source.closed
    with pytest.raises(StopAsyncIteration):
        await anext(deltas)


A, B = Delta(text="a"), Delta(text="b")


async def test_all_that_is_there_is_taken_at_once():
    mailbox = Mailbox()
    mailbox.put(A)
    mailbox.put(B)
    assert await mailbox.take() == [A, B]


async def test_taking_waits_for_something():
    mailbox = Mailbox()
    taking = asyncio.create_task(mailbox.take())
    await asyncio.sleep(0)
    assert not taking.done()
    mailbox.put(A)
    mailbox.put(B)
    assert await taking == [A, B]


async def test_an_error_in_a_mailbox_comes_after_what_came_before_it():
    mailbox = Mailbox()
    mailbox.put(A)
    mailbox.fail(EngineDeadError("gone"))
    assert await mailbox.take() == [A]
    with pytest.raises(EngineDeadError, match="gone"):
        await mailbox.take()


async def test_an_error_wakes_who_waits():
    mailbox = Mailbox()
    taking = asyncio.create_task(mailbox.take())
    await asyncio.sleep(0)
    mailbox.fail(EngineDeadError("gone"))
    with pytest.raises(EngineDeadError):
        await taking


async def test_a_taker_who_was_cancelled_loses_nothing():
    mailbox = Mailbox()
    taking = asyncio.create_task(mailbox.take())
    await asyncio.sleep(0)
    taking.cancel()
    mailbox.put(A)
    await asyncio.gather(taking, return_exceptions=True)
    assert await mailbox.take() == [A]
