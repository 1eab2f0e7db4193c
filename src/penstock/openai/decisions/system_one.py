"""TypeSafe's System One API, the same questions in other words: a `state`, and named questions of
the types noul (yes or no), choice and score (https://docs.typesafe.ai). Its client, Ollama and
OpenRouter speak it.

Not taken: questions of the type box, and assets.
"""

from __future__ import annotations

import json
from typing import Any, ClassVar, Literal

from msgspec import Struct

from penstock.errors import RequestError
from penstock.types import (
    ChoiceQuestion,
    DecideRequest,
    Decision,
    Decisions,
    Option,
    PredicateQuestion,
    Question,
    ScoreQuestion,
)

Content = str | dict[str, Any] | list[Any]


class SystemOneQuestion(Struct, forbid_unknown_fields=True):
    """One question. `criteria` describe yes and no (`true`, `false`), the options by name, or the
    levels, the lowest first.
    """

    type: Literal["noul", "choice", "score"]
    instructions: Content
    criteria: dict[str, Any] | list[Any] | None = None


class SystemOneBody(Struct, kw_only=True):
    """Body of `POST /v1/systemone`: a state, and questions by their names."""

    names: ClassVar = {"input": "state", "messages": "state", "prompt": "state"}
    model: str = ""
    state: Content
    questions: dict[str, SystemOneQuestion]

    def request(self, *, request_id: str = "") -> DecideRequest:
        questions = tuple(_question(name, one) for name, one in self.questions.items())
        return DecideRequest(_text(self.state), questions, request_id=request_id)


def systemone_object(result: Decisions, model: str) -> dict[str, Any]:
    """Body of an answer: those of the questions, by their names."""
    return {
        "model": model,
        "answers": {one.name: _answer(one) for one in result.items},
        "usage": {"input_tokens": result.usage.prompt_tokens, "output_tokens": 0},
    }


def _question(name: str, form: SystemOneQuestion) -> Question:
    text, criteria = _text(form.instructions), form.criteria
    if form.type == "noul":
        sides = {} if criteria is None else criteria
        if not isinstance(sides, dict) or not sides.keys() <= {"true", "false"}:
            where = f"questions.{name}.criteria"
            raise RequestError(f"{where} must be an object with true and false", param=where)
        for key, word in (("true", "Yes"), ("false", "No")):
            if sides.get(key):
                text += f"\n{word}: {_text(sides[key])}"
        return PredicateQuestion(text, name)
    if form.type == "choice":
        listed = criteria if isinstance(criteria, list) else []
        named = criteria.items() if isinstance(criteria, dict) else [(_text(x), "") for x in listed]
        options = (Option(key, _text(value) if value else "") for key, value in named)
        return ChoiceQuestion(text, tuple(options), name)
    if not isinstance(criteria, list):
        where = f"questions.{name}.criteria"
        raise RequestError(f"{where} must be a list of levels", param=where)
    return ScoreQuestion(text, tuple(Option(_text(level)) for level in criteria), name)


def _text(content: Any) -> str:
    return content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)


def _answer(decision: Decision) -> dict[str, Any]:
    chances = decision.probabilities
    if decision.type == "predicate":
        return {"type": "noul", "noul": chances[0]}
    if decision.type == "choice":
        best = decision.labels[chances.index(max(chances))]
        return {
            "type": "choice",
            "choice": best,
            "confidence": max(chances),
            "probabilities": dict(zip(decision.labels, chances, strict=True)),
        }
    places = list(map(str, range(len(chances))))
    return {
        "type": "score",
        "score": sum(place * chance for place, chance in enumerate(chances)),
        "confidence": max(chances),
        "legend": dict(zip(places, decision.labels, strict=True)),
        "probabilities": dict(zip(places, chances, strict=True)),
    }
