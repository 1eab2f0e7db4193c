"""Decisions by a server that answers `/v1/decisions`: OpenAI's, or Penstock's own."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from penstock.engines.decisions.answers import decided, decision, values_of
from penstock.engines.decisions.checks import check_questions, options_of
from penstock.engines.decisions.trie import Shares
from penstock.errors import UnsupportedError, UpstreamError
from penstock.types import (
    ChoiceQuestion,
    DecideRequest,
    Decision,
    Decisions,
    Message,
    Option,
    PredicateQuestion,
    Question,
    Usage,
)


class _Chance(Struct):
    probability: float


class _Answer(Struct):
    type: str
    probability: float | None = None
    probabilities: list[_Chance] | None = None
    mass: float = 1.0


class _Usage(Struct, frozen=True):
    input_tokens: int = 0


class DecisionAnswer(Struct):
    """The fields of an answer's body that are read."""

    answers: list[_Answer]
    usage: _Usage = _Usage()


def decision_body(request: DecideRequest, to_penstock: bool) -> dict[str, Any]:
    """The body of a request, without the model. `to_penstock`: the server is Penstock's, and takes
    what OpenAI's API lacks. Raises `RequestError`; `UnsupportedError` for what such a server lacks.
    """
    check_questions(request.questions)
    given = request.input
    body: dict[str, Any] = {
        "input": given if isinstance(given, str) else list(map(_item, given)),
        "questions": [_question(one, to_penstock) for one in request.questions],
    }
    optional = ("chat_template", "chat_template_kwargs")
    return body | {name: value for name in optional if (value := getattr(request, name))}


def read_decisions(request: DecideRequest, answer: DecisionAnswer, where: str) -> Decisions:
    """The decisions in the answer of the server `where`. Raises `UpstreamError`."""
    if len(answer.answers) != len(request.questions):
        count = len(request.questions)
        raise UpstreamError(
            f"{where} answered {len(answer.answers)} of {count} questions", http_status=200
        )
    items = [
        _decision(question, one, where)
        for question, one in zip(request.questions, answer.answers, strict=True)
    ]
    return Decisions(items, Usage(answer.usage.input_tokens))


def _decision(question: Question, answer: _Answer, where: str) -> Decision:
    count = len(values_of(question))
    if answer.type == "refusal":
        return decided(question, [1 / count] * count, 0.0)
    chances = [one.probability for one in answer.probabilities or ()]
    if isinstance(question, PredicateQuestion) and answer.probability is not None:
        chances = [answer.probability, 1 - answer.probability]
    if len(chances) != count:
        raise UpstreamError(
            f"{where} gave {len(chances)} probabilities for {count} options", http_status=200
        )
    if isinstance(question, ChoiceQuestion) and question.several:
        each = [Shares([chance, 1 - chance], answer.mass) for chance in chances]
        return decision(question, each)
    return decided(question, chances, answer.mass)


def _question(question: Question, to_penstock: bool) -> dict[str, Any]:
    body: dict[str, Any] = {"type": "predicate", "instructions": question.instructions}
    if question.name:
        body["name"] = question.name
    if isinstance(question, PredicateQuestion):
        return body
    if isinstance(question, ChoiceQuestion):
        if question.several and not to_penstock:
            raise UnsupportedError("the server's API has no choice of several", param="questions")
        choices = [
            {"value": one.value if isinstance(one.value, bool) else one.label, **_description(one)}
            for one in question.options
        ]
        several = {"several": True} if question.several else {}
        return {**body, "type": "choice", "choices": choices, **several}
    levels = [{"label": one.label, **_description(one)} for one in options_of(question)]
    return {**body, "type": "score", "levels": levels}


def _description(option: Option) -> dict[str, str]:
    return {"description": option.description} if option.description else {}


def _item(message: Message) -> dict[str, Any]:
    """A message in the words of the Responses API."""
    role, content = message.get("role"), message.get("content")
    if role not in ("system", "developer", "user", "assistant") or message.get("tool_calls"):
        raise UnsupportedError("the remote engine has no decisions on tool calls", param="input")
    if not isinstance(content, list):
        return {"type": "message", "role": role, "content": content or ""}
    kind = "output_text" if role == "assistant" else "input_text"
    parts: list[dict[str, Any]] = []
    for part in content:
        if part.get("type") == "text":
            parts.append({"type": kind, "text": part.get("text")})
        elif part.get("type") == "image_url":
            parts.append({"type": "input_image", "image_url": part["image_url"].get("url")})
        else:
            raise UnsupportedError(
                f"no decision is made about a part of type {part.get('type')!r}", param="input"
            )
    return {"type": "message", "role": role, "content": parts}
