"""One collector of a request's deltas, whoever asks: plain rows, stages, OpenAI lines."""

import pytest

from penstock.batch.rows.repair import collect, one_text
from penstock.errors import EngineError
from penstock.openai.responses import Answers
from penstock.types import ChatRequest, Delta, Usage


class Model:
    def __init__(self, *deltas):
        self.deltas = deltas

    async def chat(self, request):
        for delta in self.deltas:
            yield delta


def request(n=1):
    return ChatRequest(messages=[], n=n)


async def test_the_text_and_the_tokens_of_one_answer():
    model = Model(Delta(text="a"), Delta(text="b", finish_reason="stop", usage=Usage(3, 2)))
    outcome = await collect(model, request(), one_text)
    assert (outcome.response, outcome.finish_reason, outcome.usage) == ("ab", "stop", Usage(3, 2))


@pytest.mark.parametrize("made", [one_text, Answers])
@pytest.mark.parametrize("reason", ["abort", "error", None])
async def test_an_answer_that_was_ended_early_is_none(made, reason):
    with pytest.raises(EngineError, match="before its answer was complete"):
        await collect(Model(Delta(text="a", finish_reason=reason)), request(), made)


async def test_each_of_several_answers_must_be_complete():
    first, second = Delta(text="a", finish_reason="stop"), Delta(index=1, text="b")
    with pytest.raises(EngineError):
        await collect(Model(first, second), request(n=2), Answers)
    whole = Delta(index=1, text="b", finish_reason="length")
    assert (await collect(Model(first, whole), request(n=2), Answers)).texts == {0: "a", 1: "b"}
