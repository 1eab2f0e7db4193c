"""What each API calls the parameters that an error names in the neutral types' words."""

from __future__ import annotations

import re
from collections.abc import Mapping
from copy import copy

from msgspec import Struct

from penstock.errors import ContextLengthError, PenstockError
from penstock.openai.messages_api import MessageBody
from penstock.openai.requests import ChatBody, CompletionBody, EmbeddingBody
from penstock.openai.responses_api import ResponseBody

_PROMPT = "prompt"
_NAMES: Mapping[type[Struct], Mapping[str, str]] = {
    ChatBody: {_PROMPT: "messages"},
    CompletionBody: {"messages": _PROMPT, "top_logprobs": "logprobs"},
    EmbeddingBody: {_PROMPT: "input"},
    ResponseBody: {
        _PROMPT: "input",
        "messages": "input",
        "max_tokens": "max_output_tokens",
        "response_format": "text.format",
    },
    MessageBody: {
        _PROMPT: "messages",
        "stop": "stop_sequences",
        "response_format": "output_config.format",
    },
}
_TEXTS = frozenset({_PROMPT, "messages"})
"""Words of the language too, so they stay as they are in an error's text."""


def in_words_of(body: Struct, error: PenstockError) -> PenstockError:
    """The error with the names that the request's body has: the same object if it has them."""
    names = {**_NAMES.get(type(body), {})}
    if getattr(body, "max_completion_tokens", None) is not None:
        names["max_tokens"] = "max_completion_tokens"
    given = error.param
    if given is None and isinstance(error, ContextLengthError):
        given = _PROMPT
    if given is None:
        return error
    name, end = re.match(r"([^.\[]*)(.*)", given, re.DOTALL).groups()  # type: ignore[union-attr]
    named = names.get(name, name) + end
    if named == error.param:
        return error
    shown = copy(error)
    shown.param = named
    if name in names and name not in _TEXTS:
        shown.args = (re.sub(rf"\b{name}\b", names[name], str(error)),)
    return shown
