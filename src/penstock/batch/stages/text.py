"""Chat template, tokenizer and detokenizer as separate stages, for users who want their columns.

Without these stages the engine does the same together with its own work, and a row's data goes to
it only once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from functools import partial
from operator import index
from typing import Any, ClassVar

from penstock.batch.pipeline.offload import Offload
from penstock.batch.stages.base import MAPPING, StatefulStage
from penstock.engines.base import LLMEngine
from penstock.engines.registry import EngineSource
from penstock.errors import PenstockError, RequestError
from penstock.openai.requests import begun_by_assistant, check_messages
from penstock.types import TokenizeRequest

_INT = frozenset({int})


class _OnEngine:
    """A worker that uses the template and the tokenizer of the processor's engine."""

    engine: LLMEngine

    def __init__(self, source: EngineSource, **_: Any) -> None:
        self._source = source
        self._stack = contextlib.AsyncExitStack()

    async def start(self) -> None:
        supervisor = await self._stack.enter_async_context(self._source.running())
        self.engine = supervisor.engine

    async def stop(self) -> None:
        await self._stack.aclose()


class ChatTemplates(_OnEngine):
    """Fills the model's chat template, off the event loop. `template` replaces the model's own."""

    def __init__(
        self,
        source: EngineSource,
        *,
        template: str | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(source)
        self._offload: Offload
        self._template = template
        self._variables = dict(variables or {})

    async def start(self) -> None:
        await super().start()
        self._offload = Offload()
        found = getattr(self.engine, "template", None)  # an engine that speaks to a server has none
        self._render = found.render if found is not None else None

    async def stop(self) -> None:
        if hasattr(self, "_offload"):
            self._offload.close()
        await super().stop()

    async def process(self, row: dict[str, Any]) -> dict[str, Any]:
        raw = row.get("prompt") is not None or row.get("tokenized_prompt") is not None
        if row.get("messages") is None and raw:
            return {}
        messages = conversation(row)
        # The conversation is what is asked: its prompt takes the place of what the row came with.
        replaced = dict.fromkeys(row.keys() & {"prompt", "tokenized_prompt"})
        tools = row.get("tools")
        if (tools is not None and len(tools)) or self._render is None or not _is_text(messages):
            # The engine fills its template itself: it must know the tools to read the calls, and
            # the images.
            return replaced
        variables = {**self._variables, **(row.get("chat_template_kwargs") or {})}
        fill = partial(
            self._render,
            messages,
            override=self._template,
            variables=variables,
            continue_final_message=begun_by_assistant(messages),
        )
        return {**replaced, "prompt": await self._offload.submit(fill)}


class Tokens(_OnEngine):
    """Token ids of the prompt. `templated`: the prompt of a conversation is a filled template,
    which has its special tokens.
    """

    def __init__(self, source: EngineSource, *, templated: bool = True) -> None:
        super().__init__(source)
        self._templated = templated

    async def process(self, row: dict[str, Any]) -> dict[str, Any]:
        is_chat = row.get("messages") is not None
        if row.get("prompt") is None and is_chat:
            return {}
        filled = self._templated and is_chat
        asked = TokenizeRequest(prompt=text_in(row, "prompt"), special_tokens=not filled)
        return {"tokenized_prompt": (await self.engine.tokens(asked)).ids}


class Texts(_OnEngine):
    """The text of generated tokens, of each answer where there are several; without the special
    tokens that have names (such as the end), and without the thoughts that a row has in
    `reasoning_content`, unless `whole`.
    """

    def __init__(self, source: EngineSource, *, whole: bool = False) -> None:
        super().__init__(source)
        self._whole = whole
        self._special: set[int] = set()

    async def start(self) -> None:
        await super().start()
        with contextlib.suppress(PenstockError):  # not every endpoint tells them
            for text in (await self.engine.tokenizer_info()).special_tokens.values():
                if len(ids := await self.engine.tokenize(text)) == 1:
                    self._special.update(ids)

    async def process(self, row: dict[str, Any]) -> dict[str, Any]:
        if row.get("generated_tokens") is None:
            return {}
        made: dict[str, Any] = {"generated_text": await self._text(row)}
        if row.get("outputs"):
            texts = [await self._text(output) for output in row["outputs"]]
            made["outputs"] = [
                {**output, "generated_text": text}
                for output, text in zip(row["outputs"], texts, strict=True)
            ]
        return made

    async def _text(self, output: Mapping[str, Any]) -> str:
        # By their ids: an answer about HTML may spell "<s>" itself.
        ids = [id for id in output["generated_tokens"] if id not in self._special]
        text = await self.engine.detokenize(ids) if ids else ""
        if self._whole or output.get("reasoning_content") is None:
            return text
        return without_reasoning(text)[1]


class ChatTemplateStage(StatefulStage):
    """Renders `messages` to the column `prompt`."""

    _required: ClassVar[Mapping[str, str]] = {
        "messages": "The conversation, a list of messages in OpenAI's form. An answer continues a"
        " last message that is the assistant's."
    }
    _optional: ClassVar[Mapping[str, str]] = {
        "tools": "Functions that the model may call, in OpenAI's form.",
        "chat_template_kwargs": "Further variables of the chat template.",
    }
    _shareable = True


class TokenizeStage(StatefulStage):
    """Encodes `prompt` into the column `tokenized_prompt`."""

    _required: ClassVar[Mapping[str, str]] = {"prompt": "The text to tokenize."}
    _shareable = True


class DetokenizeStage(StatefulStage):
    """Decodes `generated_tokens` into the column `generated_text`."""

    _required: ClassVar[Mapping[str, str]] = {
        "generated_tokens": "Token ids that the engine has generated."
    }
    _optional: ClassVar[Mapping[str, str]] = {
        "outputs": "All answers, where the row has asked for several."
    }
    _shareable = True


def _is_text(messages: list[dict[str, Any]]) -> bool:
    contents = [message.get("content") for message in messages]
    return all(
        part["type"] == "text"
        for content in contents
        if isinstance(content, list)
        for part in content
    )


def without_reasoning(text: str) -> tuple[str | None, str]:
    """What a model thought before it answered, and the answer. The first tag of `<think>…</think>`
    may be missing.
    """
    thought, end, answer = text.partition("</think>")
    if end:
        return thought.strip().removeprefix("<think>").strip(), answer.lstrip("\n")
    if text.lstrip().startswith("<think>"):  # cut off in the middle of its thoughts
        return text.lstrip().removeprefix("<think>").strip(), ""
    return None, text


def as_list(value: Any) -> Any:
    """An array as the list that it holds; any other value as it is."""
    return value.tolist() if hasattr(value, "tolist") else value


def token_ids(value: Any) -> list[int]:
    """The token ids in a column. Raises `RequestError`."""
    ids = as_list(value)
    try:
        return list(ids if set(map(type, ids)) <= _INT else map(index, ids))
    except TypeError:
        raise RequestError(
            "tokenized_prompt must be a list of token ids", param="tokenized_prompt"
        ) from None


def text_in(row: Mapping[str, Any], name: str) -> str:
    """The text in a column. Raises `RequestError`."""
    value = row.get(name)
    if not isinstance(value, str):
        raise RequestError(f"the row has no text in column '{name}'", param=name)
    return value


def conversation(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The row's `messages`, checked, without columnar data's empty parts. Raises `RequestError`."""
    messages = as_list(row.get("messages"))
    if messages is None:
        raise RequestError("the row has no column 'messages'", param="messages")
    if not isinstance(messages, list) or not messages:
        raise RequestError("column 'messages' holds no list of messages", param="messages")
    plain = []
    for message in messages:
        if not isinstance(message, MAPPING):
            raise RequestError(
                "column 'messages' holds something that is no message", param="messages"
            )
        plain.append({key: value for key, value in message.items() if value is not None})
    check_messages(plain)
    return plain
