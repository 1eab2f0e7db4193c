"""The body of requests for vectors: texts in OpenAI's form, and images in those of other servers.

vLLM takes conversations, in `messages` or in `input`; OpenRouter and Cohere list objects with the
parts of one message in `input`, Jina objects with a `text` or an `image`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

from msgspec import Struct, field

from penstock.errors import RequestError
from penstock.openai.media.images import part_with
from penstock.openai.requests import (
    Count,
    TokenId,
    begins_turn,
    check_messages,
    texts_or_ids,
)
from penstock.openai.tool_forms import plain_messages
from penstock.types import ChatRequest, EmbeddingRequest, Message

MOST_INPUTS = 2048
"""Inputs of a request for embeddings, as at OpenAI."""
_Object = dict[str, Any]
_OF_CHATS = (
    *("add_generation_prompt", "continue_final_message"),
    *("chat_template", "chat_template_kwargs"),
)


class EmbeddingBody(Struct, kw_only=True):
    """Body of `POST /v1/embeddings`: one text or many, token ids, which the model reads as they
    are, or conversations and objects with images.

    `messages` is one conversation or a list of them, each of which becomes a vector. As in `input`,
    the model's chat template makes a prompt of each; `add_generation_prompt` is true if unset.
    """

    model: str = ""
    input: str | list[str | TokenId | _Object | list[TokenId | _Object]] | None = None
    messages: list[_Object | list[_Object]] | None = None
    dimensions: Count | None = None
    encoding_format: Literal["float", "base64"] = "float"
    input_type: Literal["query", "document"] | None = None
    truncate_prompt_tokens: Literal[-1] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool = False
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    user: str | None = None

    @property
    def names(self) -> dict[str, str]:
        given, other = ("input", "messages") if self.messages is None else ("messages", "input")
        return {"prompt": given, other: given}

    def request(self, *, request_id: str = "") -> EmbeddingRequest:
        inputs = self._inputs()
        if len(inputs) > MOST_INPUTS:
            raise RequestError(
                f"input has {len(inputs):,} texts: at most {MOST_INPUTS:,} go into a request",
                param="input",
            )
        if not inputs or not all(inputs):
            raise RequestError("input must not be empty", param="input")
        return EmbeddingRequest(
            inputs,
            self.dimensions,
            request_id,
            input_type=self.input_type,
            truncate=self.truncate_prompt_tokens is not None,
        )

    def _inputs(self) -> Sequence[str | list[int] | ChatRequest]:
        both = self.input is not None and self.messages
        if both or self.input is self.messages is None:
            raise RequestError("give either input or messages", param="input")
        name = "messages" if self.input is None else "input"
        given: Any = getattr(self, name)
        items: list[Any] = given if isinstance(given, list) else []
        if _is_turns(items):
            return [self._chat(items)]
        if items and all(isinstance(item, list) and _is_turns(item) for item in items):
            return [self._chat(item, f"{name}[{at}]") for at, item in enumerate(items)]
        if name == "messages":
            raise RequestError("messages must be a conversation, or a list of them", param=name)
        kinds = set(map(type, items))
        if dict in kinds:
            return [
                one if isinstance(one, str) else self._chat([_turn(one, at)], f"input[{at}]")
                for at, one in enumerate(items)
            ]
        if list in kinds and any(dict in map(type, item) for item in items if type(item) is list):
            raise RequestError("a list in input holds token ids or a conversation", param=name)
        for name in _OF_CHATS:
            if getattr(self, name):
                raise RequestError(f"{name} goes with messages, not with texts", param=name)
        return texts_or_ids(given, "input") if given else []

    def _chat(self, messages: list[Message], place: str = "") -> ChatRequest:
        try:
            check_messages(messages)
        except RequestError as error:
            where = f"{place}: " if place else ""
            raise RequestError(f"{where}{error}", param=place or error.param) from None
        return ChatRequest(
            plain_messages(messages),
            chat_template=self.chat_template,
            chat_template_kwargs=self.chat_template_kwargs,
            add_generation_prompt=begins_turn(
                self.add_generation_prompt, self.continue_final_message
            ),
            continue_final_message=self.continue_final_message,
        )


def _is_turns(items: list[Any]) -> bool:
    return bool(items) and all(isinstance(item, dict) and "role" in item for item in items)


_PARTS: dict[str, Callable[[str], dict[str, Any]]] = {
    "image": partial(part_with, medium="image"),
    "text": lambda text: {"type": "text", "text": text},
}


def _turn(given: Any, place: int) -> Message:
    """The message with the content of an object in `input`."""
    content = None
    said = {n: v for n, v in given.items() if v is not None} if isinstance(given, dict) else {}
    if said.keys() == {"content"}:
        content = said["content"]
    elif said.keys() <= _PARTS.keys() and all(isinstance(value, str) for value in said.values()):
        content = [_PARTS[name](value) for name, value in said.items() if value]
    if not content:
        raise RequestError(
            f"input[{place}] must be a text, or an object with a content, a text or an image",
            param=f"input[{place}]",
        )
    return {"role": "user", "content": content}
