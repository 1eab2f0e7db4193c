"""Turns requests into vLLM's inputs: prompts and sampling parameters."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from penstock.engines.sampling import check_id_range, most_new_tokens
from penstock.engines.templates.chat_template import (
    CHANGED,
    PLAIN,
    ChatTemplate,
    read_template,
    refuse_taken,
)
from penstock.engines.vllm.library import (
    ChatCompletionToolsParam,
    ChatParams,
    RepetitionDetectionParams,
    RequestOutputKind,
    SamplingParams,
    StructuredOutputsParams,
    ThreadSafeHFTokenizerMixin,
    is_mistral_tokenizer,
    special_tokens,
)
from penstock.engines.vllm.translation import PlainText
from penstock.errors import ContextLengthError, RequestError, UnsupportedError, context_overflow
from penstock.types import (
    SAME_NAME,
    ChatRequest,
    CompletionRequest,
    Delta,
    Message,
    Sampling,
    StructuredOutput,
    TokenizeRequest,
    TokenizerInfo,
    Tokens,
)

if TYPE_CHECKING:
    from penstock.engines.vllm.front import Front

_SHORT = 4096
"""Texts of at most this many characters are rendered in the event loop: a thread would cost several
times as much as the work.
"""
_TOO_LONG = frozenset({"input_tokens", "input_text"})
_FOR_MEDIA = ("mm_processor_kwargs", "media_io_kwargs")
_FOR_PROMPT = frozenset({"truncate_prompt_tokens", "truncation_side", "documents", *_FOR_MEDIA})
_NEUTRAL = Sampling()
_OF_RENDERER = ("conversation", "chat_template", "tokenize")
"""Names by which vLLM's renderer gives a template, or itself, what a request sets."""
_SAME_EXTRA = (
    *("skip_special_tokens", "spaces_between_special_tokens", "include_stop_str_in_output"),
    *("logprob_token_ids", "thinking_token_budget", "watermarking"),
)
"""The parameters of `Sampling.extra` that are fields of vLLM's `SamplingParams`."""


Shown = tuple[Mapping[str, Any], int]
"""Media, and how many of a prompt's token ids are the head that has them."""


class Prepared(Struct):
    """A request for `AsyncLLM.generate`. `sampling` is what `params` were made of. `translate`
    splits the text of each delta, if needed.
    """

    prompt: Any
    params: Any
    sampling: Sampling = _NEUTRAL
    translate: Callable[[Delta], Delta] | None = None
    extras: dict[str, Any] = {}

    @property
    def token_ids(self) -> list[int] | None:
        """The prompt's token ids; None if it is more than that."""
        return list(self.prompt["prompt_token_ids"]) if self.prompt.get("type") == "token" else None


class Prompts:
    """Renders prompts for one model, which may have no tokenizer. Passes on vLLM's errors, but
    raises `ContextLengthError` for a prompt that is too long. `defaults`: the sampling parameters
    that the model's `generation_config.json` or the options state, as under `vllm serve`.
    """

    def __init__(self, front: Front) -> None:
        model = front.config.model_config
        self.context_length: int = model.max_model_len
        self.defaults: dict[str, Any] = dict(model.get_diff_sampling_param())
        self._longest: int = self.defaults.pop("max_tokens", self.context_length)
        self._most: int = model.override_generation_config.get(
            "max_new_tokens",
            self.context_length if model.generation_config in ("auto", "vllm") else self._longest,
        )
        self.tokenizer = front.llm.tokenizer
        self._renderer = front.llm.renderer
        # As in vLLM's server. The default adds special tokens that the template has written.
        self._chat_tokens = self._renderer.default_chat_tok_params.with_kwargs(
            add_special_tokens=False
        )
        self._vocabulary = front.vocabulary
        frontend = front.options.frontend
        self.template = _template(frontend.get("chat_template"), self.tokenizer)
        self.variables: dict[str, Any] = frontend.get("default_chat_template_kwargs") or {}
        self._content_format = frontend.get("chat_template_content_format", "auto")
        self._tokenized_by_template = is_mistral_tokenizer(self.tokenizer)
        # Such a tokenizer serves the event loop while vLLM's thread uses it for a long text.
        self._at_once = isinstance(self.tokenizer, ThreadSafeHFTokenizerMixin)
        self.text_template = self._template_of_texts()
        """What renders text conversations as vLLM's renderer does; None if the tokenizer renders
        them itself, or there is none.
        """
        self.reads_media = self._renderer.mm_processor is not None
        """Whether conversations may hold more than texts."""
        self._plain = (
            PlainText(self.tokenizer.backend_tokenizer, self.text_template)
            if self._at_once
            else None
        )

    def ids(self, text: str) -> list[int]:
        """The token ids of a text, none added."""
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    async def tokens(self, request: TokenizeRequest) -> Tokens:
        """The token ids of a text or a conversation, however many. Passes on vLLM's errors."""
        chat = request.chat
        wanted = partial(
            replace,
            max_total_tokens=None,
            max_output_tokens=0,
            add_special_tokens=request.special_tokens,
        )
        if chat is None:
            params = wanted(self._renderer.default_cmpl_tok_params)
            (made,) = await self._renderer.render_cmpl_async([{"prompt": request.prompt}], params)
        else:
            messages, tools, kwargs = self._for_template(
                chat, None if chat.tool_choice == "none" else chat.tools
            )
            _, (made,) = await self._renderer.render_chat_async(
                [messages],
                self._chat_params(chat.chat_template, kwargs, tools),
                wanted(self._chat_tokens),
            )
        ids = list(made.get("prompt_token_ids") or ())
        names = self.tokenizer.convert_ids_to_tokens(ids) if request.names else None
        return Tokens(ids, names)

    def info(self) -> TokenizerInfo:
        template = self.text_template
        kind = type(self.tokenizer).__name__
        return TokenizerInfo(
            kind, template.source if template else None, special_tokens(self.tokenizer)
        )

    def text(self, ids: list[int]) -> str:
        """The text of token ids, special tokens included, as vLLM's server gives it."""
        self.check_ids(ids, "tokens")
        return str(self.tokenizer.decode(ids, skip_special_tokens=False))

    def token_text(self, token_id: int) -> str:
        """The text of one token."""
        return "" if self.tokenizer is None else str(self.tokenizer.decode([token_id]))

    def learn(self) -> None:
        """Enable shortcuts for plain text. Takes a while, and warms the renderer up."""
        if self._plain is not None:
            params = self._chat_params(None, {}, None)
            self._plain.learn(
                lambda messages: self._rendered(messages, params),
                lambda text, special: self._renderer.render_cmpl(
                    [{"prompt": text}], self._text_params(special)
                )[0],
            )

    async def prepare_chat(
        self, request: ChatRequest, sampling: Sampling, tools: list[dict[str, Any]] | None
    ) -> Prepared:
        """Prepare a conversation; `sampling` and `tools` replace the request's own. Raises
        `ContextLengthError`, and vLLM's errors.
        """
        ids = request.prompt_token_ids
        if ids:
            prompt = await self.completion(ids)
        else:
            prompt = await self._chat(request, sampling, tools)
        return self._prepared(prompt, request, sampling)

    async def prepare_completion(
        self, request: CompletionRequest, sampling: Sampling, shown: Shown | None = None
    ) -> Prepared:
        """Prepare a text or token ids, whose head has media where something is `shown`; `sampling`
        replaces the request's own. Raises as `completion`.
        """
        given = request.prompt_token_ids or request.prompt
        if shown is not None:
            assert isinstance(given, list)
            prompt = await self.with_media(given, *shown)
        else:
            prompt = await self.completion(
                given, special_tokens=request.special_tokens, sampling=sampling
            )
        return self._prepared(prompt, request, sampling)

    def _prepared(
        self, prompt: Any, request: ChatRequest | CompletionRequest, sampling: Sampling
    ) -> Prepared:
        self.check_sampling_ids(sampling)
        extra, structured = sampling.extra, sampling.structured
        arguments = dict(extra.get("vllm_xargs", {}))
        if transfer := request.kv_transfer_params or extra.get("kv_transfer_params"):
            arguments["kv_transfer_params"] = transfer
        repetition = extra.get("repetition_detection")
        if "cache_salt" in extra:
            prompt["cache_salt"] = extra["cache_salt"]
        params = SamplingParams(
            n=request.n,
            max_tokens=self.room(prompt, sampling.max_tokens, sampling.whole),
            stop=list(sampling.stop) or None,
            stop_token_ids=list(sampling.stop_token_ids) or None,
            logprobs=None if extra.get("logprob_token_ids") else sampling.logprobs,
            prompt_logprobs=sampling.prompt_logprobs,
            logit_bias=dict(sampling.logit_bias) or None,
            allowed_token_ids=list(sampling.allowed_token_ids) or None,
            bad_words=list(sampling.bad_words) or None,
            repetition_detection=repetition and RepetitionDetectionParams(**repetition),
            structured_outputs=structured and StructuredOutputsParams(**constraint(structured)),
            output_kind=output_kind(request),
            extra_args=arguments or None,
            skip_clone=True,  # the object serves one request only
            **{name: getattr(sampling, name) for name in SAME_NAME},
            **{name: extra[name] for name in _SAME_EXTRA if name in extra},
        )
        return Prepared(prompt, params, sampling)

    def _for_template(
        self, request: ChatRequest, tools: list[dict[str, Any]] | None
    ) -> tuple[list[Message], list[dict[str, Any]] | None, dict[str, Any]]:
        """The messages, tools and variables that the template gets for a request."""
        messages, kwargs = request.messages, request.chat_template_kwargs
        if kwargs:
            refuse_taken(kwargs, *_OF_RENDERER)
        if self.text_template is not None:
            messages, tools = self.text_template.fitted(messages, tools, request.chat_template)
        if tools:  # in the form in which vLLM's server shows them, keys without a value included
            tools = [ChatCompletionToolsParam.model_validate(tool).model_dump() for tool in tools]
        if not request.add_generation_prompt or request.continue_final_message:
            kwargs = {
                "add_generation_prompt": False,
                "continue_final_message": request.continue_final_message,
                **kwargs,
            }
        return messages, tools, kwargs

    async def _chat(
        self, request: ChatRequest, sampling: Sampling, tools: list[dict[str, Any]] | None
    ) -> Any:
        messages, tools, kwargs = self._for_template(request, tools)
        extra = sampling.extra
        at_once = (
            self._at_once and not tools and _FOR_PROMPT.isdisjoint(extra) and _is_short(request)
        )
        try:
            if (
                at_once
                and kwargs is request.chat_template_kwargs
                and self._plain is not None
                and (ids := self._plain.chat(messages)) is not None
            ):
                return self._of_ids(ids)
            if "documents" in extra:
                kwargs = {**kwargs, "documents": extra["documents"]}
            media = {name: extra[name] for name in _FOR_MEDIA if name in extra}
            params = self._chat_params(request.chat_template, kwargs, tools, **media)
            if at_once:
                prompt = self._rendered(messages, params)
            else:
                tokenizing = _cut(self._chat_tokens, sampling)
                extras = {name: extra[name] for name in _FOR_MEDIA[:1] if name in extra}
                _, (prompt,) = await self._renderer.render_chat_async(
                    [messages], params, tokenizing, prompt_extras=extras
                )
        except Exception as error:
            if request.continue_final_message and "continue_final_message" in str(error):
                raise RequestError(CHANGED, param="continue_final_message") from error
            raise self._too_long(error) or error from None
        return prompt

    def _rendered(self, messages: list[Message], params: Any) -> Any:
        """The engine input of a conversation that is rendered at once."""
        _, (prompt,) = self._renderer.render_chat([messages], params, self._chat_tokens)
        return prompt

    async def completion(
        self,
        prompt: str | list[int],
        *,
        special_tokens: bool = True,
        sampling: Sampling = _NEUTRAL,
    ) -> Any:
        """The engine input of a text or of token ids. Raises `RequestError`, `ContextLengthError`,
        and vLLM's errors.
        """
        params = self._text_params(special_tokens)
        if cut := bool(_FOR_PROMPT.intersection(sampling.extra)):
            params = _cut(params, sampling)
        if isinstance(prompt, str):
            given: dict[str, Any] = {"prompt": prompt}
        else:
            if not prompt:
                raise RequestError("the prompt is empty", param="prompt")
            self.check_ids(prompt, "prompt")
            given = {"prompt_token_ids": prompt}
        try:
            if self._at_once and len(prompt) <= _SHORT and not cut:
                if (
                    isinstance(prompt, str)
                    and self._plain is not None
                    and (ids := self._plain.text(prompt, special_tokens))
                ):
                    return self._of_ids(ids)
                (made,) = self._renderer.render_cmpl([given], params)
            else:
                (made,) = await self._renderer.render_cmpl_async([given], params)
        except Exception as error:
            raise self._too_long(error) or error from None
        return made

    async def written(self, request: ChatRequest) -> tuple[str, dict[str, Any]]:
        """The text of a conversation whose tokenizer writes it as text, and what else its prompt
        has: its media. Raises vLLM's errors.
        """
        messages, _, kwargs = self._for_template(request, None)
        params = self._chat_params(request.chat_template, kwargs, None)
        _, prompt = await self._renderer.render_messages_async(messages, params)
        media = dict(prompt)
        return media.pop("prompt"), media

    async def with_media(self, ids: list[int], media: Mapping[str, Any], head: int) -> Any:
        """The engine input of token ids, of which so many are a `head` with `media`. In the others
        no mark stands for any. Passes on vLLM's errors, but raises `RequestError`.

        Each prompt brings the media to vLLM's renderer, though they are the same: by that its cache
        knows what the engine's has, and nothing is decoded twice.
        """
        self.check_ids(ids, "prompt")
        given = {"prompt_token_ids": ids[:head], **media}
        try:
            (made,) = await self._renderer.render_cmpl_async([given], self._chat_tokens)
        except Exception as error:
            raise self._too_long(error) or error from None
        if made["type"] != "multimodal":
            why = "the vllm engine makes no decisions by a model with an encoder for prompts"
            raise UnsupportedError(why, param="messages")
        made["prompt_token_ids"] = [*made["prompt_token_ids"], *ids[head:]]
        return made

    def _template_of_texts(self) -> ChatTemplate | None:
        if self.tokenizer is None or self._tokenized_by_template:
            return None
        found = self.template or getattr(self.tokenizer, "chat_template", None)
        return ChatTemplate(found, {**special_tokens(self.tokenizer), **self.variables})

    def room(self, prompt: Any, max_tokens: int | None, whole: bool = False) -> int:
        """How many tokens the answer may have: `max_tokens`, or what the context leaves if that is
        less. Raises `ContextLengthError` if it leaves nothing, or not enough for a `whole` answer.
        """
        ids = prompt.get("prompt_token_ids")
        wanted = max_tokens or self._longest
        if ids is None:
            return min(wanted, self.context_length, self._most)
        whole = whole and max_tokens is not None
        return min(most_new_tokens(len(ids), wanted, self.context_length, whole), self._most)

    def check_ids(self, ids: Sequence[int], param: str) -> None:
        """Raise `RequestError` for a token id outside the model's vocabulary."""
        check_id_range(ids, self._vocabulary, param)

    def check_sampling_ids(self, sampling: Sampling) -> None:
        """Raise `RequestError` for a token id outside the vocabulary in a request's sampling.
        vLLM's core uses these ids as indices of its logits, and crashes beyond the end.
        """
        self.check_ids(sampling.stop_token_ids, "stop_token_ids")
        self.check_ids(sampling.allowed_token_ids, "allowed_token_ids")
        self.check_ids([token_id for token_id, _ in sampling.logit_bias], "logit_bias")
        self.check_ids(sampling.extra.get("logprob_token_ids", ()), "logprob_token_ids")

    def _of_ids(self, ids: list[int]) -> Any:
        (made,) = self._renderer.render_cmpl(
            [{"prompt_token_ids": ids}], self._renderer.default_cmpl_tok_params
        )
        return made

    def _text_params(self, special_tokens: bool) -> Any:
        params = self._renderer.default_cmpl_tok_params
        return params if special_tokens else params.with_kwargs(add_special_tokens=False)

    def _chat_params(
        self,
        template: str | None,
        kwargs: Mapping[str, Any],
        tools: list[dict[str, Any]] | None,
        **media: Any,
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
            **media,
        )

    def _too_long(self, error: Exception) -> ContextLengthError | None:
        if getattr(error, "parameter", None) not in _TOO_LONG:
            return None
        # vLLM counts no further than one token beyond the context.
        count = getattr(error, "value", None)
        known = isinstance(count, int) and count > self.context_length + 1
        return context_overflow(self.context_length, count if known else None)


def _cut(params: Any, sampling: Sampling) -> Any:
    """Parameters of tokenizing that cut a long prompt as the request wants it."""
    if "truncate_prompt_tokens" not in sampling.extra:
        return params
    return replace(
        params,
        truncate_prompt_tokens=sampling.extra["truncate_prompt_tokens"],
        truncation_side=sampling.extra.get("truncation_side"),
        max_output_tokens=sampling.max_tokens or 0,
    )


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
    """The template to use; None for the model's own. A model that has none gets `PLAIN`."""
    if given is not None:
        return read_template(given)
    has_one = is_mistral_tokenizer(tokenizer) or getattr(tokenizer, "chat_template", None)
    return None if has_one else PLAIN


def output_kind(request: ChatRequest | CompletionRequest) -> Any:
    """Whether vLLM sends each step's text, or all text at the end."""
    return RequestOutputKind.DELTA if request.stream else RequestOutputKind.FINAL_ONLY


def constraint(structured: StructuredOutput) -> dict[str, Any]:
    """A constraint as the arguments of vLLM's `StructuredOutputsParams`."""
    if structured.triggers:
        return {"structural_tag": json.dumps(_tags(structured))}
    if structured.kind == "json_schema":
        return {"json": structured.spec}
    if structured.kind in ("regex", "grammar"):
        return {structured.kind: structured.spec}
    return {"json_object": True}


def _tags(structured: StructuredOutput) -> dict[str, Any]:
    """A schema of what follows triggers, as XGrammar's structural tag."""
    content = {"type": "json_schema", "json_schema": json.loads(structured.spec)}
    tags = [
        {"type": "tag", "begin": trigger + space, "content": content, "end": ""}
        for trigger in structured.triggers
        for space in ("", "\n")
    ]
    triggers = list(structured.triggers)
    return {
        "type": "structural_tag",
        "format": {"type": "triggered_tags", "triggers": triggers, "tags": tags},
    }
