"""Whoever overrides a method of a task, or implements `generate`, `answer` and `control`: both are
asked.
"""

import pytest

from penstock.engines.base import Capabilities, LLMEngine
from penstock.engines.group import EngineGroup
from penstock.engines.simulated.engine import SimulatedEngine
from penstock.engines.tasks import TASKS, Operations, Tasks, generated
from penstock.errors import UnsupportedError
from penstock.serve.models.control import METHODS
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
    assert set(METHODS) - {"check_health"} == {
        n for n in vars(Operations) if not n.startswith("_")
    } - {"control"}


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
