"""Renders conversations to prompts with a model's own Jinja chat template.

The environment is the one that Hugging Face's templates are written for: sandboxed, blocks trimmed, `tojson` without
HTML escapes, and the functions `raise_exception` and `strftime_now`
(https://huggingface.co/docs/transformers/main/en/chat_templating).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

from jinja2 import Template, TemplateError
from jinja2.ext import loopcontrols
from jinja2.meta import find_undeclared_variables
from jinja2.sandbox import ImmutableSandboxedEnvironment

from penstock.errors import RequestError
from penstock.types import Message

PLAIN = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"
"""Used for models without a template of their own: the contents, a line each."""


class ChatTemplate:
    """One model's template. `source` None means that the model has none: contents are joined by line ends."""

    def __init__(self, source: str | None, special_tokens: Mapping[str, str] | None = None) -> None:
        self.source = source or PLAIN
        self._special_tokens = dict(special_tokens or {})

    def takes_tools(self, override: str | None = None) -> bool:
        """Whether the template, or `override` in its place, shows tools to the model."""
        return _takes_tools(override or self.source)

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        override: str | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt for `messages`, ready for the assistant's turn.

        `override` replaces the model's template; `variables` are further names for the template
        (`chat_template_kwargs`). Raises `RequestError` if the template rejects the conversation.
        """
        names: dict[str, Any] = {"add_generation_prompt": True, **self._special_tokens, **(variables or {})}
        try:
            template = _compile(override or self.source)
            return template.render(messages=[_plain_content(m) for m in messages], tools=tools, **names)
        except TemplateError as error:
            raise RequestError(f"the chat template rejected the messages: {error}", param="messages") from error
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise RequestError(f"the chat template could not render the messages: {error}", param="messages") from error


@lru_cache(maxsize=64)
def _takes_tools(source: str) -> bool:
    try:
        return "tools" in find_undeclared_variables(_environment().parse(source))
    except TemplateError:
        return False


@lru_cache(maxsize=64)
def _compile(source: str) -> Template:
    return _environment().from_string(source)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _plain_content(message: Message) -> Message:
    """Text-only content parts become one string, which is what most templates expect."""
    content = message.get("content")
    if isinstance(content, list) and all(isinstance(p, dict) and p.get("type") == "text" for p in content):
        return {**message, "content": "".join(str(part.get("text", "")) for part in content)}
    return message


def _tojson(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise(message: str) -> None:
    raise TemplateError(message)
