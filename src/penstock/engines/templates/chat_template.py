"""Renders conversations to prompts with a model's own Jinja chat template. Where it knows no tools,
they become text (`openai.tools`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import TemplateError, TemplateSyntaxError
from jinja2.exceptions import SecurityError
from jinja2.meta import find_undeclared_variables

from penstock.engines.templates.environment import RefusedError, compiled, environment, what_fails
from penstock.errors import ConfigError, RequestError
from penstock.openai.tools import arguments_as_objects, content_text, has_tools, tools_as_text
from penstock.types import ChatRequest, Message

PLAIN = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"
"""The template of models that have none: the contents, a line each."""
CHANGED = (
    "the model's chat template changes or drops the text of the last message, so no answer can"
    " continue it"
)
TAGS = {"image": "<ov_genai_image_tag>", "video": "<ov_genai_video_tag>"}
"""The marks in texts for templates that know no parts for images and videos."""
PLAIN_ROLES = frozenset({"system", "user", "assistant"})
_END_MARK = "CONTINUE_FINAL_MESSAGE_TAG "
"""Added after the text that the answer continues, to find that text in the prompt."""


def read_template(given: str) -> str:
    """The template that an option gives: the path of a file, or the text itself. Raises
    `ConfigError` for a path without a file, and for what is no template.
    """
    text = given
    if "{" not in given and "\n" not in given:
        try:
            text = Path(given).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"is no template, and no file that can be read: {error}",
                field="engine_kwargs.chat_template",
                value=given,
            ) from None
    try:
        compiled(text)
    except TemplateSyntaxError as error:
        raise ConfigError(
            f"is no Jinja template: {error.message} (line {error.lineno})",
            field="engine_kwargs.chat_template",
            value=given[:200],
        ) from None
    return text


_FAILURES = (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError)
_TAKEN = frozenset({"messages", "tools", "self"})
"""Names that variables cannot have: a request sets them."""


def check_variables(given: Any) -> None:
    """Raise `ConfigError` for `default_chat_template_kwargs` that would fail every request."""
    field = "engine_kwargs.default_chat_template_kwargs"
    if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
        raise ConfigError("must be a mapping of names to values", field=field, value=given)
    if taken := _TAKEN & given.keys():
        raise ConfigError(
            "the template has this name from elsewhere: leave it out",
            field=f"{field}.{min(taken)}",
            value=given[min(taken)],
        )


def refuse_taken(variables: Mapping[str, Any], *more: str) -> None:
    """Raise `RequestError` for a variable that the request itself sets, or one of `more`."""
    if taken := _TAKEN.union(more) & variables.keys():
        place = f"chat_template_kwargs.{min(taken)}"
        raise RequestError(f"{place}: the template has this name from elsewhere", param=place)


def template_options(request: ChatRequest) -> dict[str, Any]:
    """What `ChatTemplate.render` takes for a request, beside its messages."""
    return {
        "tools": None if request.tool_choice == "none" else request.tools,
        "override": request.chat_template,
        "variables": request.chat_template_kwargs,
        "add_generation_prompt": request.add_generation_prompt,
        "continue_final_message": request.continue_final_message,
    }


class ChatTemplate:
    """One model's template. `source` None: the model has none, and line ends join the contents.
    Templates by name are used as transformers uses them: `tool_use` where a request has tools, else
    `default`; a request names another in place of its own template. `named` has them.
    `variables` are further names for it, where a request does not give them. `images`: the model
    sees, so contents may have parts `{"type": "image"}` and, if it does videos, "video".
    """

    def __init__(
        self,
        source: str | Mapping[str, str] | None,
        special_tokens: Mapping[str, str] | None = None,
        variables: Mapping[str, Any] | None = None,
        *,
        images: bool = False,
    ) -> None:
        self.named = source if isinstance(source, Mapping) else {}
        self.source = (self.named.get("default") if self.named else str(source or "")) or PLAIN
        self._variables = dict(variables or {})
        self._images = images
        self._names = tuple((special_tokens or {}).items())
        self.names = dict(self._names)
        """Special tokens by the names that templates use."""

    def prompt(self, request: ChatRequest) -> str:
        """The prompt of a request, made as `render` makes it."""
        return self.render(request.messages, **template_options(request))

    def chosen(self, tools: Any, override: str | None = None) -> str:
        """The source for a request with these tools, or with a template of its own."""
        if override:
            return self.named.get(override, override)
        return (self.named.get("tool_use") if tools else None) or self.source

    def fitted(
        self,
        messages: list[Message],
        tools: list[dict[str, Any]] | None,
        override: str | None = None,
    ) -> tuple[list[Message], list[dict[str, Any]] | None]:
        """Messages and tools as the template (or `override`) can show them: one that knows no
        tools gets them as text.
        """
        source = self.chosen(tools, override)
        if not (tools or has_tools(messages)) or takes_tools(source):
            return messages, tools
        system = _shows(source, self._names, _SYSTEM_TURN, "SYSTEM")
        return tools_as_text(messages, tools, system=system), None

    def mark_of(self, prompt: str, medium: str, wanted: int, override: str | None = None) -> str:
        """The mark that stands for each of `wanted` images (or videos) in a prompt. Raises
        `RequestError` if the prompt has another number of marks.
        """
        mark = _media_form(self.chosen(None, override), self._names).marks[medium]
        count = prompt.count(mark) if mark else 0
        if count != wanted:
            why = (
                f"the texts hold '{mark}', which stands for one"
                if count > wanted
                else "the model's chat template does not show each of them"
            )
            number = f"{wanted or 'no'} {medium}{'s'[: wanted > 1]}"
            raise RequestError(f"the messages have {number}: {why}", param="messages")
        return mark

    def render(
        self,
        messages: list[Message],
        *,
        tools: list[dict[str, Any]] | None = None,
        override: str | None = None,
        variables: Mapping[str, Any] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
    ) -> str:
        """The prompt for `messages`, which may be in OpenAI's form, ready for the assistant's turn.

        `override` replaces the model's template; `variables` are further names for the template
        (`chat_template_kwargs`). With `continue_final_message` the prompt ends with the text of the
        last message, as transformers' `apply_chat_template` makes it. Raises `RequestError` if the
        template rejects the conversation, or changes the text to continue.
        """
        names: dict[str, Any] = {
            "add_generation_prompt": add_generation_prompt and not continue_final_message,
            **dict(self._names),
            **self._variables,
            **(variables or {}),
        }
        if not _TAKEN.isdisjoint(names):
            refuse_taken(names)
        source = self.chosen(tools, override) if self.named else override or self.source
        # Nearly every conversation has no calls and no null: it is looked at once, without a call.
        special, null, as_sent = bool(tools), False, True
        for message in messages:
            special = special or "tool_calls" in message or message.get("role") not in PLAIN_ROLES
            null = null or message.get("content") is None
        if special:
            fitted, tools = self.fitted(messages, tools, override)
            as_sent = fitted is messages
            messages = arguments_as_objects(fitted)
        shape = _media_form(source, self._names).shape if self._images else _plain_content
        plain = list(map(shape, messages))
        if null or special:
            empty = None if _takes_null(source, self._names) else ""
            plain = [m if m.get("content") is not None else {**m, "content": empty} for m in plain]
        if not continue_final_message:
            return self._filled(source, plain, tools, names, as_sent)
        text = content = plain[-1].get("content") if plain else None
        if isinstance(content, list) and len(content) == 1:
            text = content[0].get("text")
        if not isinstance(text, str) or plain[-1].get("tool_calls"):
            raise RequestError(
                "the last message has no text that an answer could continue",
                param="continue_final_message",
            )
        marked: Any = text + _END_MARK
        if isinstance(content, list):
            marked = [{"type": "text", "text": marked}]
        plain[-1] = {**plain[-1], "content": marked}
        return _cut(self._filled(source, plain, tools, names, as_sent), text)

    def _filled(
        self,
        source: str,
        plain: list[Message],
        tools: Sequence[Mapping[str, Any]] | None,
        names: Mapping[str, Any],
        as_sent: bool,
    ) -> str:
        """The filled template. `as_sent`: the messages stand at the places that they have in the
        request, so an error can name the place.
        """
        try:
            return compiled(source).render(messages=plain, tools=tools, **names)
        except RefusedError as error:  # in the words of the template's author
            raise RequestError(
                f"the chat template rejected the messages: {error}", param="messages"
            ) from error
        except TemplateSyntaxError as error:
            raise RequestError(
                f"line {error.lineno} of the chat template is no valid Jinja", param="messages"
            ) from error
        except SecurityError as error:
            raise RequestError(
                "the chat template does what no template may", param="messages"
            ) from error
        except _FAILURES as error:

            def filled(some: Sequence[Message]) -> str:
                return compiled(source).render(messages=some, tools=tools, **names)

            param, what = what_fails(error, filled, plain if as_sent else ())
            raise RequestError(f"the chat template cannot {what}", param=param) from error


@lru_cache(maxsize=64)
def takes_tools(source: str) -> bool:
    """Whether a template shows tools to the model."""
    try:
        return "tools" in find_undeclared_variables(environment().parse(source))
    except TemplateError:
        return False


_SYSTEM_TURN = ({"role": "system", "content": "SYSTEM"}, {"role": "user", "content": "user"})
_NULL_TURNS: tuple[tuple[Message, ...], ...] = tuple(
    (
        {"role": "user", "content": "user"},
        {"role": "assistant", "content": None, **calls},
        *more,
        {"role": "user", "content": "user"},
    )
    for calls, more in (
        ({}, ()),
        (
            {"tool_calls": [{"id": "a", "type": "function", "function": {"name": "f"}}]},
            ({"role": "tool", "tool_call_id": "a", "content": "result"},),
        ),
    )
)
_Names = tuple[tuple[str, Any], ...]


@lru_cache(maxsize=64)
def _takes_null(source: str, names: _Names) -> bool:
    """Whether the template takes assistants' messages whose content is null."""
    turns = _NULL_TURNS if takes_tools(source) else _NULL_TURNS[:1]
    return all("None" not in (_tried(source, names, turn) or "None") for turn in turns)


def _shows(source: str, names: _Names, messages: Sequence[Message], text: str) -> bool:
    """Whether a template's prompt for messages has the text."""
    return text in (_tried(source, names, messages) or "")


def _tried(source: str, names: _Names, messages: Sequence[Message]) -> str | None:
    """The prompt for messages that nobody sent; None where the template does not take them."""
    try:
        filled: str = compiled(source).render(
            messages=list(messages), tools=None, add_generation_prompt=True, **dict(names)
        )
    except Exception:  # of any kind: these are not the caller's messages
        return None
    return filled


def _cut(prompt: str, text: str) -> str:
    """A prompt up to the end of `text`, after which the mark stands. If the template has stripped
    the mark's blank, the blanks at the end of the text go too.
    """
    mark = _END_MARK.strip()
    at = prompt.rfind(mark)
    kept = prompt[:at] if prompt.startswith(_END_MARK, at) else prompt[:at].rstrip()
    if at < 0 or not kept.rstrip().endswith(text.strip()):
        raise RequestError(CHANGED, param="continue_final_message")
    return kept


def _plain_content(message: Message) -> Message:
    """Text-only content parts become one string, which is what most templates expect."""
    content = message.get("content")
    if isinstance(content, list) and all(
        isinstance(p, dict) and p.get("type") == "text" for p in content
    ):
        return {**message, "content": content_text(content)}
    return message


class _MediaForm(NamedTuple):
    """How a template takes the contents of messages, and what it writes for an image, a video."""

    shape: Callable[[Message], Message]
    marks: Mapping[str, str]


_PROBE = {"type": "text", "text": "CONTENT"}


@lru_cache(maxsize=64)
def _media_form(source: str, names: _Names) -> _MediaForm:
    """Finds the form by trying: some templates take lists of parts alone, some only texts, in which
    the tags that OpenVINO GenAI knows for all models stand for images and videos.
    """

    def shown(content: Any) -> str:
        return _tried(source, names, [{"role": "user", "content": content}]) or ""

    def mark(medium: str) -> str:
        one = shown([{"type": medium}, _PROBE])
        found = one[at : len(one) - len(text) + at] if at >= 0 else ""
        whole = text[:at] + found + text[at:] == one and "'type'" not in one
        return found.strip() if whole else ""

    text = shown([_PROBE])
    at = text.find(_PROBE["text"])
    marks = {medium: mark(medium) for medium in TAGS}
    if not marks["image"]:
        return _MediaForm(_tagged_content, TAGS)
    if marks["video"] == marks["image"]:  # it writes the same for all parts that are not text
        marks["video"] = ""
    takes_texts = _PROBE["text"] in shown(_PROBE["text"])
    return _MediaForm(_plain_content if takes_texts else _listed_content, marks)


def _listed_content(message: Message) -> Message:
    """A text as a list of one part."""
    content = message.get("content")
    if not isinstance(content, str):
        return message
    return {**message, "content": [{"type": "text", "text": content}]}


def _tagged_content(message: Message) -> Message:
    """Parts as one text, in which a tag stands for an image or a video."""
    content = message.get("content")
    if not isinstance(content, list):
        return message
    texts = [
        f"{TAGS[kind]}\n" if (kind := str(part.get("type"))) in TAGS else str(part.get("text", ""))
        for part in content
    ]
    return {**message, "content": "".join(texts)}
