"""The environment that Hugging Face's chat templates are written for: sandboxed, blocks trimmed,
`tojson` without HTML escapes, and the functions `raise_exception` and `strftime_now`
(https://huggingface.co/docs/transformers/main/en/chat_templating). And what a template refuses, in
words.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

from jinja2 import Template, TemplateError, Undefined, UndefinedError
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import missing

from penstock.types import Message

_MOST_TRIED = 50
"""At most this many messages are tried, to find the one that a template refuses."""


@lru_cache(maxsize=64)
def compiled(source: str) -> Template:
    """The template with this source. Raises `TemplateSyntaxError`."""
    return environment().from_string(source)


def environment() -> ImmutableSandboxedEnvironment:
    """A new environment for one template."""
    made = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[loopcontrols, _Generation],
        undefined=_Undefined,
    )
    made.filters["tojson"] = lambda value, indent=None: json.dumps(
        value, ensure_ascii=False, indent=indent
    )
    made.globals["raise_exception"] = _raise
    made.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return made


class _Generation(Extension):
    """`{% generation %}`, which marks the part of a template that training computes a loss on."""

    tags = {"generation"}  # noqa: RUF012 (so it is declared)

    def parse(self, parser: Parser) -> list[Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise(message: str) -> None:
    raise RefusedError(message)


class RefusedError(TemplateError):
    """Raised by `raise_exception` in a template."""


class _MissingError(TemplateError):
    """A template uses `name`, which `owner` lacks; None: no variable has that name."""

    def __init__(self, name: str, owner: Any) -> None:
        super().__init__(name)
        self.name = name
        self.owner = owner


class _Undefined(Undefined):
    """Raises an error that names what is missing, in our words and not Jinja's."""

    __slots__ = ()

    def __init__(
        self, hint: Any = None, obj: Any = missing, name: Any = None, exc: Any = UndefinedError
    ) -> None:
        super().__init__(hint, obj, name, exc)
        if exc is UndefinedError:
            error = _MissingError(str(name), None if obj is missing else obj)
            self._undefined_exception = lambda _: error  # type: ignore[assignment]


def what_fails(
    error: Exception, filled: Callable[[Sequence[Message]], str], messages: Sequence[Message]
) -> tuple[str, str]:
    """The message and field that a template refuses: the parameter, and words for it."""
    if isinstance(error, _MissingError):
        if error.owner is None:
            return "messages", f"be filled: it needs '{error.name}', which is not given"
        path = _path_of(error.owner, list(messages), "messages")
        if path is not None:
            return path, f"use {path}: it has no '{error.name}'"
        return "messages", f"be filled: something in it has no '{error.name}'"
    for number in range(min(len(messages), _MOST_TRIED)):
        try:
            filled(messages[: number + 1])
        except RefusedError:
            continue
        except Exception:
            odd = [
                f"its {name} is {_kind(value)}"
                for name, value in messages[number].items()
                if type(value) is not str
            ]
            why = " and ".join(odd) or "it has not the form that the template expects"
            return f"messages[{number}]", f"use messages[{number}]: {why}"
    return "messages", "use these messages: they have not the form that it expects"


def _path_of(wanted: Any, value: Any, path: str) -> str | None:
    """Where an object stands in the messages."""
    if value is wanted:
        return path
    if isinstance(value, Mapping):
        parts = [(part, f"{path}.{name}") for name, part in value.items()]
    else:
        items = enumerate(value) if isinstance(value, list) else ()
        parts = [(part, f"{path}[{number}]") for number, part in items]
    return next(filter(None, (_path_of(wanted, part, where) for part, where in parts)), None)


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, Mapping):
        return "an object"
    return "a list" if isinstance(value, list) else f"{value!r}"
