"""Questions as a model reads them: one head for the input, and a branch for each question.

The head is what all questions share, so its KV cache is computed once. A branch is the text of a
question up to the place where the model would answer, and the labels that it may say there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgspec import Struct

from penstock.engines.decisions.checks import YES_NO, options_of
from penstock.errors import RequestError
from penstock.types import (
    ChoiceQuestion,
    DecideRequest,
    Message,
    Option,
    PredicateQuestion,
    Question,
)

_YES_OR_NO = "Answer with Yes or No."
_PLACE = "\u2063QUESTION\u2063"
"""Stands where the questions are put, to find that place in a rendered conversation."""


class Branch(Struct, frozen=True, array_like=True):
    """The text from the end of the head to the answer of question `number`, and the labels."""

    number: int
    text: str
    labels: tuple[str, ...]


class RequestTexts(Struct, frozen=True):
    """A request as texts. `special_tokens`: the tokenizer must add its own (such as one that begins
    a text) to the head; a chat template has written them already. `images` are files; each stands
    where the head has an `image_mark`.
    """

    head: str
    branches: list[Branch]
    special_tokens: bool
    images: tuple[bytes, ...] = ()
    image_mark: str = ""


Render = Callable[[list[Message], bool], str]
"""Makes a conversation a prompt. If the flag is true, the prompt continues the last message."""


def asked(request: DecideRequest, render: Render | None) -> RequestTexts:
    """The texts of a request; `render` None: the model holds no conversations. Raises
    `RequestError`.

    Where no question has instructions, and the last message is the assistant's, the labels continue
    that message. For a model without conversations, the labels of a question without instructions
    continue the input.
    """
    if render is None:
        if not isinstance(request.input, str):
            raise RequestError("this model reads a text, no messages", param="input")
        return _placed(f"{request.input}{_PLACE}", request, plain=True)
    messages, continued = conversation(request)
    return texts_of(render(messages, continued), request)


def conversation(request: DecideRequest) -> tuple[list[Message], bool]:
    """The messages to render for `texts_of`, and whether the prompt continues the last one. Raises
    `RequestError`.
    """
    if _is_begun(request):
        assert not isinstance(request.input, str)
        return request.input, True
    return _with_place(request.input), False


def texts_of(prompt: str, request: DecideRequest) -> RequestTexts:
    """The texts of a request whose `conversation` was rendered. Raises `RequestError`."""
    place = _PLACE if _is_begun(request) else ""
    return _placed(f"{prompt}{place}", request, plain=False)


def _is_begun(request: DecideRequest) -> bool:
    """Whether the answer is begun by the last message."""
    given = request.input
    begun = not isinstance(given, str) and bool(given) and given[-1].get("role") == "assistant"
    return begun and not any(question.instructions.strip() for question in request.questions)


def _placed(prompt: str, request: DecideRequest, plain: bool) -> RequestTexts:
    """`prompt`, taken apart at the place of the questions. `plain`: a text, no conversation."""
    head, found, tail = prompt.rpartition(_PLACE)
    if not found or _PLACE in head:
        raise RequestError("the chat template drops or changes the last message", param="input")
    blank = ""
    if plain:
        tail, blank = "\nAnswer:", " "  # where a word begins with its blank
    branches = [
        Branch(
            number,
            f"\n\n{text}{tail}" if text else "" if plain else tail,
            tuple(f"{blank}{label}" for label in labels),
        )
        for number, question in enumerate(request.questions)
        for text, labels in _texts(question)
    ]
    return RequestTexts(head, branches, plain)


def _with_place(given: str | list[Message]) -> list[Message]:
    """The conversation with the place of the questions at the end of the user's last message."""
    if isinstance(given, str):
        return [{"role": "user", "content": f"{given}{_PLACE}"}]
    if not given:
        raise RequestError("the input has no messages", param="input")
    last = given[-1]
    if last.get("role") != "user":
        return [*given, {"role": "user", "content": _PLACE}]
    content: Any = last.get("content") or ""
    if isinstance(content, str):
        content = f"{content}{_PLACE}"
    elif content[-1].get("type") == "text":  # a part of its own may get a line of its own
        content = [*content[:-1], {**content[-1], "text": f"{content[-1].get('text', '')}{_PLACE}"}]
    else:
        content = [*content, {"type": "text", "text": _PLACE}]
    return [*given[:-1], {**last, "content": content}]


def _texts(question: Question) -> list[tuple[str, tuple[str, ...]]]:
    """What is asked for a question, and the labels of the answers: once, or once an option.

    The allowed answers come first, as questions often share that: then it is read once.
    """
    labels = tuple(option.label for option in options_of(question))
    text = question.instructions
    if not text.strip():
        return [("", labels)]
    if isinstance(question, PredicateQuestion):
        return [(f"{_YES_OR_NO}\n{text}", labels)]
    if isinstance(question, ChoiceQuestion) and question.several:
        yes_no = tuple(option.label for option in YES_NO)
        return [
            (f"{_YES_OR_NO}\n{text}\nDoes this apply: {_described(option)}", yes_no)
            for option in question.options
        ]
    what = "one of these" if isinstance(question, ChoiceQuestion) else "one level, lowest first"
    each = "\n".join(f"- {_described(option)}" for option in options_of(question))
    return [(f"Answer with {what}:\n{each}\n{text}", labels)]


def _described(option: Option) -> str:
    return f"{option.label}: {option.description}" if option.description else option.label
