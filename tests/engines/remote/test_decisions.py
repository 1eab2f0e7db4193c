"""Decisions by a server with `/v1/decisions`."""

import msgspec
import pytest
from aiohttp import web

from penstock.engines.remote.decisions import DecisionAnswer, decision_body, read_decisions
from penstock.errors import RequestError, UnsupportedError, UpstreamError
from penstock.openai.decisions.openai_form import DecisionBody, decision_object
from penstock.openai.parameters.body import parse_body
from penstock.types import (
    ChoiceQuestion,
    DecideRequest,
    Option,
    PredicateQuestion,
    ScoreQuestion,
)
from scripted_api import remote

OPTIONS = (Option("a", "first"), Option("b"))
REQUEST = DecideRequest(
    [{"role": "user", "content": [{"type": "text", "text": "x"}]}],
    (
        PredicateQuestion("True?", "truth"),
        ChoiceQuestion("Which?", OPTIONS),
        ScoreQuestion("How much?", OPTIONS),
    ),
)


def answers(*given):
    return msgspec.convert({"answers": given, "usage": {"input_tokens": 9}}, DecisionAnswer)


def test_a_request_is_what_the_server_reads():
    body = decision_body(REQUEST, to_penstock=False)
    read = parse_body(DecisionBody, {"model": "m", **body}).request()
    assert read.questions[0] == REQUEST.questions[0]
    choice = read.questions[1]
    assert isinstance(choice, ChoiceQuestion)
    assert [one.label for one in choice.options] == ["a", "b"]
    assert read.questions[2] == REQUEST.questions[2]
    assert read.input == REQUEST.input


def test_an_answer_becomes_decisions():
    found = read_decisions(
        REQUEST,
        answers(
            {"type": "predicate", "probability": 0.75},
            {"type": "choice", "probabilities": [{"probability": 0.25}, {"probability": 0.75}]},
            {"type": "score", "probabilities": [{"probability": 0.5}, {"probability": 0.5}]},
        ),
        "there",
    )
    assert [one.value for one in found.items] == [True, "b", 0.5]
    assert found.items[2].tied
    assert found.usage.prompt_tokens == 9
    assert decision_object(found, "m")["answers"][0]["probability"] == 0.75


def test_a_refusal_is_unknown():
    request = DecideRequest("x", REQUEST.questions[:1])
    (found,) = read_decisions(request, answers({"type": "refusal"}), "there").items
    assert (found.value, found.mass, found.probabilities) == (None, 0.0, [0.5, 0.5])
    assert decision_object(read_decisions(request, answers({"type": "refusal"}), ""), "m")[
        "answers"
    ] == [{"type": "refusal", "name": "truth"}]


@pytest.mark.parametrize(
    "given",
    [
        [],
        [{"type": "predicate"}],
        [{"type": "choice", "probabilities": [{"probability": 1.0}] * 3}],
    ],
)
def test_an_answer_to_something_else_is_the_servers_fault(given):
    with pytest.raises(UpstreamError, match="there"):
        read_decisions(DecideRequest("x", REQUEST.questions[:1]), answers(*given), "there")


def test_what_the_api_lacks_is_refused_by_name():
    several = DecideRequest("x", (ChoiceQuestion("Which?", OPTIONS, several=True),))
    assert decision_body(several, to_penstock=True)["questions"][0]["several"]
    with pytest.raises(UnsupportedError, match="several"):
        decision_body(several, to_penstock=False)
    tool = DecideRequest([{"role": "tool", "content": "x"}], REQUEST.questions)
    with pytest.raises(UnsupportedError, match="tool calls"):
        decision_body(tool, to_penstock=False)
    with pytest.raises(RequestError, match="1 to 400"):
        decision_body(DecideRequest("x", ()), to_penstock=False)


async def test_a_server_is_asked_and_one_without_the_path_is_named(script):
    async def missing(request):
        return web.json_response({"detail": "Not Found"}, status=404)

    asked = DecideRequest("x", REQUEST.questions[:1])
    script.answers = [{"answers": [{"type": "predicate", "probability": 0.75}]}]
    async with remote(script) as engine:
        assert (await engine.decide(asked)).items[0].value is True
    script.answers = [missing]
    async with remote(script) as engine:
        with pytest.raises(UnsupportedError, match="decide"):
            await engine.decide(asked)
    path, body = script.asked[0]
    assert path == "/v1/decisions"
    question = {"type": "predicate", "instructions": "True?", "name": "truth"}
    assert body == {"model": "m", "input": "x", "questions": [question]}
