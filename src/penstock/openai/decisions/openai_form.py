"""OpenAI's Decisions API: typed questions about an input, answered with probabilities
(https://platform.openai.com/docs/api-reference/decisions, the types of openai 3.57).

Penstock's own: a choice may be of `several`, a level may have a `value`, and an answer has the
`mass` of its options and whether they are `tied`.
"""

from __future__ import annotations

import json
from typing import Any, ClassVar, Literal

from msgspec import Struct, field

from penstock.errors import RequestError
from penstock.openai.requests import check_messages
from penstock.openai.responses_api import input_messages, response_usage
from penstock.types import (
    ChoiceQuestion,
    DecideRequest,
    Decision,
    Decisions,
    Message,
    Option,
    PredicateQuestion,
    Question,
    ScoreQuestion,
)

Parts = str | list[dict[str, Any]]


class ChoiceForm(Struct, forbid_unknown_fields=True):
    """One option of a choice. A text and a boolean of the same letters are different values."""

    value: str | bool
    description: str | None = None


class LevelForm(Struct, forbid_unknown_fields=True):
    """One level of a score. `value` None: its place, from 0."""

    label: str
    description: str | None = None
    value: float | None = None


class QuestionForm(Struct, forbid_unknown_fields=True):
    """One question: a predicate, a choice among `choices`, or a score of `levels`."""

    type: Literal["predicate", "choice", "score"]
    instructions: Parts
    name: str | None = None
    choices: list[ChoiceForm] | None = None
    levels: list[LevelForm] | None = None
    several: bool | None = None


class DecisionBody(Struct, kw_only=True):
    """Body of `POST /v1/decisions`; `input` is a text or a list of items, as of a response."""

    names: ClassVar = {"messages": "input", "prompt": "input"}
    model: str = ""
    input: Parts
    questions: list[QuestionForm]
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)

    def request(self, *, adapter: str | None = None, request_id: str = "") -> DecideRequest:
        return DecideRequest(
            self.input if isinstance(self.input, str) else _messages(self.input),
            tuple(_question(number, one) for number, one in enumerate(self.questions)),
            self.chat_template,
            self.chat_template_kwargs,
            adapter,
            request_id,
        )


def decision_object(result: Decisions, model: str) -> dict[str, Any]:
    """Body of a decision: an answer a question, in their order."""
    return {
        "model": model,
        "answers": list(map(_answer, result.items)),
        "usage": response_usage(result.usage),
    }


def _question(number: int, form: QuestionForm) -> Question:
    place = f"questions[{number}]"
    name, text = form.name or "", _text(form.instructions, f"{place}.instructions")
    wanted = {"choice": "choices", "score": "levels"}.get(form.type)
    for given in ("choices", "levels"):
        if (getattr(form, given) is None) is (given == wanted):
            needs = "needs" if given == wanted else "has no"
            raise RequestError(f"{place}: a {form.type} {needs} {given}", param=f"{place}.{given}")
    if form.several and form.type != "choice":
        raise RequestError(f"{place}: only a choice may be of several", param=f"{place}.several")
    if form.type == "choice":
        options = [
            Option(_label(one.value), one.description or "", one.value)
            for one in form.choices or ()
        ]
        return ChoiceQuestion(text, tuple(options), name, bool(form.several))
    if form.type == "score":
        levels = [Option(one.label, one.description or "", one.value) for one in form.levels or ()]
        return ScoreQuestion(text, tuple(levels), name)
    return PredicateQuestion(text, name)


def _label(value: str | bool) -> str:
    return value if isinstance(value, str) else str(value).lower()


def _text(given: Parts, place: str) -> str:
    if isinstance(given, str):
        return given
    texts = []
    for number, each in enumerate(given):
        where = f"{place}[{number}]"
        part = _as_text(each, where)
        if part.get("type") != "input_text" or not isinstance(part.get("text"), str):
            raise RequestError(f"{where}: questions are asked in texts and JSON", param=where)
        texts.append(part["text"])
    return "\n".join(texts)


def _messages(items: list[dict[str, Any]]) -> list[Message]:
    given = [_as_response_item(item, f"input[{number}]") for number, item in enumerate(items)]
    messages = input_messages(given)
    check_messages(messages)
    return messages


def _as_response_item(item: dict[str, Any], place: str) -> dict[str, Any]:
    """An item with the parts that the Responses API has."""
    for name in ("content", "output"):
        if isinstance(item.get(name), list):
            parts = enumerate(item[name])
            made = [_as_text(part, f"{place}.{name}[{number}]") for number, part in parts]
            item = {**item, name: made}
    return item


def _as_text(part: Any, where: str) -> Any:
    """A part with JSON or a refusal as one with a text; any other as it is."""
    if not isinstance(part, dict):
        return {}
    if part.get("type") == "input_json":
        data = part.get("data")
        if not isinstance(data, dict | list):  # as the API's page says
            why = "a part of type 'input_json' needs its 'data', which is an object or a list"
            raise RequestError(f"{where}: {why}", param=where)
        return {"type": "input_text", "text": json.dumps(data, ensure_ascii=False)}
    if part.get("type") == "refusal":
        return {"type": "output_text", "text": part.get("refusal")}
    return part


def _answer(decision: Decision) -> dict[str, Any]:
    name = decision.name or None
    if decision.value is None:
        return {"type": "refusal", "name": name}
    about = {"type": decision.type, "name": name, "mass": decision.mass, "tied": decision.tied}
    pairs = zip(decision.values, decision.probabilities, strict=True)
    if decision.type == "predicate":
        return {**about, "probability": decision.probabilities[0]}
    if decision.type == "choice":
        return {
            **about,
            "choice": decision.value,
            "confidence": max(decision.probabilities),
            "probabilities": [{"value": value, "probability": p} for value, p in pairs],
        }
    return {
        **about,
        "score": decision.value,
        "confidence": max(decision.probabilities),
        "probabilities": [
            {"value": value, "label": label, "probability": p}
            for (value, p), label in zip(pairs, decision.labels, strict=True)
        ],
    }
