"""Renders conversations and texts into vLLM's engine inputs: templates, media, tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from penstock.engines.chat_template import PLAIN, ChatTemplate
from penstock.engines.sampling import most_new_tokens
from penstock.engines.vllm.front import Front
from penstock.engines.vllm.library import (
    ChatParams,
    ThreadSafeHFTokenizerMixin,
    is_mistral_tokenizer,
)
from penstock.engines.vllm.translation.plain_text import PlainText
from penstock.errors import ContextLengthError, RequestError, context_overflow
from penstock.types import ChatRequest

_SHORT = 4096
"""Texts of at most so many characters are rendered in the event loop: the way to another thread and
back would take several times as long as the work.
"""
_TOO_LONG = frozenset({"input_tokens", "input_text"})


class Prompts:
    """Renders prompts for one model. Passes on vLLM's errors, but raises `ContextLengthError` for a
    prompt that is too long.
    """

    def __init__(self, front: Front) -> None:
        self.context_length: int = front.config.model_config.max_model_len
        self.tokenizer = front.llm.tokenizer
        self._renderer = front.llm.renderer
        self._vocabulary = max(
            front.config.model_config.get_vocab_size(), len(self.tokenizer or ())
        )
        frontend = front.options.frontend
        self.template = _template(frontend.get("chat_template"), self.tokenizer)
        self.variables: dict[str, Any] = frontend.get("default_chat_template_kwargs") or {}
        self._content_format = frontend.get("chat_template_content_format", "auto")
        self._tokenized_by_template = is_mistral_tokenizer(self.tokenizer)
        # The event loop may use such a tokenizer while vLLM's thread uses it for a long text.
        self._at_once = isinstance(self.tokenizer, ThreadSafeHFTokenizerMixin)
        self._plain = (
            PlainText(self.tokenizer.backend_tokenizer, self.text_template())
            if self._at_once
            else None
        )

    def ids(self, text: str) -> list[int]:
        """The token ids of a text, none added."""
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def text(self, ids: list[int]) -> str:
        """The text of token ids, special tokens left out."""
        self.check_ids(ids, "tokens")
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def learn(self) -> None:
        """Compare the shortcuts for plain text with the renderer. Takes a while, and warms the
        renderer up.
        """
        if self._plain is not None:
            params = self._chat_params(None, {}, None)
            self._plain.learn(
                lambda messages: self._renderer.render_chat([messages], params)[1][0],
                lambda text, special: self._renderer.render_cmpl(
                    [{"prompt": text}], self._text_params(special)
                )[0],
            )

    async def chat(self, request: ChatRequest, tools: list[dict[str, Any]] | None) -> Any:
        """The engine input of a conversation. Raises `ContextLengthError`, and vLLM's errors."""
        at_once = self._at_once and not tools and _is_short(request)
        try:
            if (
                at_once
                and self._plain is not None
                and (ids := self._plain.chat(request.messages)) is not None
            ):
                return self._of_ids(ids)
            params = self._chat_params(request.chat_template, request.chat_template_kwargs, tools)
            if at_once:
                _, (prompt,) = self._renderer.render_chat([request.messages], params)
            else:
                _, (prompt,) = await self._renderer.render_chat_async([request.messages], params)
        except Exception as error:
            raise self._too_long(error) or error from None
        return prompt

    async def completion(self, prompt: str | list[int], *, special_tokens: bool = True) -> Any:
        """The engine input of a text or of token ids. Raises `RequestError`, `ContextLengthError`,
        and vLLM's errors.
        """
        params = self._text_params(special_tokens)
        if isinstance(prompt, str):
            given: dict[str, Any] = {"prompt": prompt}
        else:
            if not prompt:
                raise RequestError("the prompt is empty", param="prompt")
            self.check_ids(prompt, "prompt")
            given = {"prompt_token_ids": prompt}
        try:
            if self._at_once and len(prompt) <= _SHORT:
                if isinstance(prompt, str) and self._plain is not None:
                    ids = self._plain.text(prompt, special_tokens)
                    if ids:
                        return self._of_ids(ids)
                (made,) = self._renderer.render_cmpl([given], params)
            else:
                (made,) = await self._renderer.render_cmpl_async([given], params)
        except Exception as error:
            raise self._too_long(error) or error from None
        return made

    def text_template(self) -> ChatTemplate | None:
        """The template that renders text conversations like vLLM's renderer; None if the tokenizer
        itself renders them.
        """
        if self._tokenized_by_template:
            return None
        names = getattr(self.tokenizer, "special_tokens_map", {})
        special = {name: text for name, text in names.items() if isinstance(text, str)}
        return ChatTemplate(self._own_template(), {**special, **self.variables})

    def _own_template(self) -> str | None:
        found = self.template or getattr(self.tokenizer, "chat_template", None)
        return found.get("default") if isinstance(found, dict) else found

    def takes_tools(self, override: str | None) -> bool:
        """Whether the template (`override`, if given) shows tools to the model."""
        source = override or self.template or getattr(self.tokenizer, "chat_template", None)
        return not isinstance(source, str) or ChatTemplate(source).takes_tools()

    def room(self, prompt: Any, max_tokens: int | None) -> int:
        """How many tokens the answer may have. Raises `ContextLengthError` if the request asks for
        more.
        """
        length = len(prompt.get("prompt_token_ids") or ())
        return most_new_tokens(length, max_tokens, self.context_length)

    def check_ids(self, ids: Sequence[int], param: str) -> None:
        """Raise `RequestError` for a token id outside the model's vocabulary."""
        if ids and not 0 <= min(ids) <= max(ids) < self._vocabulary:
            raise RequestError(f"token ids must be from 0 to {self._vocabulary - 1}", param=param)

    def _of_ids(self, ids: list[int]) -> Any:
        (made,) = self._renderer.render_cmpl(
            [{"prompt_token_ids": ids}], self._renderer.default_cmpl_tok_params
        )
        return made

    def _text_params(self, special_tokens: bool) -> Any:
        params = self._renderer.default_cmpl_tok_params
        return params if special_tokens else params.with_kwargs(add_special_tokens=False)

    def _chat_params(
        self, template: str | None, kwargs: Mapping[str, Any], tools: list[dict[str, Any]] | None
    ) -> Any:
        variables = {
            **self.variables,
            "add_generation_prompt": True,
            "continue_final_message": False,
            "tools": tools,
            "tokenize": self._tokenized_by_template,
            **kwargs,
        }
        return ChatParams(
            chat_template=template or self.template,
            chat_template_content_format=self._content_format,
            chat_template_kwargs=variables,
        )

    def _too_long(self, error: Exception) -> ContextLengthError | None:
        if getattr(error, "parameter", None) not in _TOO_LONG:
            return None
        # vLLM counts no further than one token beyond the context.
        count = getattr(error, "value", None)
        known = isinstance(count, int) and count > self.context_length + 1
        return context_overflow(self.context_length, count if known else None)


def _is_short(request: ChatRequest) -> bool:
    """Whether the request is short plain text for the model's own template."""
    room = 0 if request.chat_template or request.chat_template_kwargs else _SHORT
    for message in request.messages:
        content = message.get("content")
        if not isinstance(content, str):
            return False
        room -= len(content) + 1
    return room >= 0


def _template(given: str | None, tokenizer: Any) -> str | None:
    """The template to use; None for the model's own. A model without one gets a template that puts
    each message's content on a line.
    """
    if given is not None:
        path = Path(given)
        is_file = "{" not in given and path.is_file()
        return path.read_text(encoding="utf-8") if is_file else given
    has_one = is_mistral_tokenizer(tokenizer) or getattr(tokenizer, "chat_template", None)
    return None if has_one else PLAIN
