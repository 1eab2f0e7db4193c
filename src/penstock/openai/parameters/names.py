"""Errors in the words of the body that a client sent, whose fields have other names than ours."""

from __future__ import annotations

import re
from collections.abc import Callable
from copy import copy

from msgspec import Struct

from penstock.errors import ContextLengthError, PenstockError

_MADE = ("messages", "questions")
_PART = re.compile(r"(\bmessages\[\d+\]\.content)\[\d+\]")


def in_words_of(body: Struct, error: PenstockError) -> PenstockError:
    """The error with the names that the request's body has: the same object if it has them.

    A form's `names` maps neutral names to its own. Its `sent`, where it has one, says of which
    place in the body a chat message was made. Messages that were made from `input` (or questions)
    have no index in the body, so the index is dropped.
    """
    names: dict[str, str] = getattr(body, "names", {})
    sent: Callable[[int], str] | None = getattr(body, "sent", None)
    if sent is not None or "messages" in names:
        error = _without_part(error)
    given = error.param
    if given is None and isinstance(error, ContextLengthError):
        given = "prompt"
    if given is None:
        return error
    if sent is not None and (turn := re.match(r"messages\[(\d+)\]", given)):
        shown, place = copy(error), sent(int(turn[1]))
        shown.param = given.replace(turn[0], place)
        shown.args = (str(error).replace(turn[0], place),)
        return shown
    name, end = re.match(r"([^.\[]*)(.*)", given, re.DOTALL).groups()  # type: ignore[union-attr]
    made = name in _MADE and name in names
    named = names[name] if made else names.get(name, name) + end
    if named == error.param:
        return error
    shown = copy(error)
    shown.param = named
    if made:
        shown.args = (re.sub(rf"\b{name}\[\d+\]|^{name}(?=:)", named, str(error)),)
    elif name in names and "_" in name:  # others are words of plain text, too
        shown.args = (re.sub(rf"\b{name}\b", names[name], str(error)),)
    return shown


def _without_part(error: PenstockError) -> PenstockError:
    """The error without the index of a part, which a message that was made has of its own."""
    if not error.param or not _PART.search(error.param):
        return error
    shown = copy(error)
    shown.param = _PART.sub(r"\1", error.param)
    shown.args = (_PART.sub(r"\1", str(error)),)
    return shown
