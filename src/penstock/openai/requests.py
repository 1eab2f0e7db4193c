"""Request bodies in OpenAI's form: checks them and turns them into neutral requests.

Every mistake is a `RequestError` that names the parameter. Parameters of OpenAI's API without an
effect here (`user`, `store` …) are accepted; unsupported and unknown ones are refused. Sampling
extras have vLLM's names (`top_k`, `min_p`, `repetition_penalty`, `min_tokens`, `stop_token_ids`,
`ignore_eos`, `structured_outputs`). Source: https://platform.openai.com/docs/api-reference.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta, Struct, field

from penstock.errors import RequestError, UnsupportedError
from penstock.openai.constraints import GUIDED, StructuredOutputs, one_constraint
from penstock.openai.parameters.engine import EngineParameters, stated, unset
from penstock.openai.responses import BestOf
from penstock.openai.tool_forms import ToolForm, of_functions, plain_messages, plain_tools
from penstock.openai.tools import check_tools
from penstock.types import (
    ChatRequest,
    CompletionRequest,
    Message,
    Sampling,
)

ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})
Count = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Whole = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
"""An integer of 64 bits, which every engine can hold; JSON allows thousands of digits."""
TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]
_TOKEN_ID = re.compile("0|[1-9][0-9]{0,9}")
TextsOrIds = str | list[str | TokenId | list[TokenId]]


class StreamOptions(Struct, forbid_unknown_fields=True):
    """`stream_options`: whether the last chunk carries the usage, and with vLLM's
    `continuous_usage_stats` each chunk the usage so far.
    """

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: bool | None = None


class SamplingParameters(EngineParameters, kw_only=True):
    """The fields of `Sampling` that chat, plain completions and responses share, under OpenAI's and
    vLLM's names. None states nothing.
    """

    temperature: float | None = None
    top_p: float | None = None
    stop: str | list[str] | None = None
    seed: Whole | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    top_k: Whole | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    min_tokens: Whole | None = None
    stop_token_ids: list[TokenId] | None = None
    ignore_eos: bool | None = None
    logit_bias: dict[str, float] | None = None
    allowed_token_ids: list[TokenId] | None = None
    bad_words: list[str] | None = None

    def to_sampling(self, **others: Any) -> Sampling:
        """The parameters as `Sampling`, with `others` added or in their place."""
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        fields = {
            "stop": stop,
            "stop_token_ids": tuple(self.stop_token_ids or ()),
            "logit_bias": bias_pairs(self.logit_bias),
            "allowed_token_ids": tuple(self.allowed_token_ids or ()),
            "bad_words": tuple(self.bad_words or ()),
            "extra": self.extra,
        }
        return Sampling(**{**fields, **stated(self), **others})


class SamplingBody(SamplingParameters, kw_only=True):
    """Parameters that chat, plain completions and responses share."""

    model: str = ""
    stream: bool | None = None
    structured_outputs: StructuredOutputs | None = None
    priority: Whole | None = None
    user: str | None = None


class GenerationBody(SamplingBody, kw_only=True):
    """Parameters that chat and plain completions share."""

    n: Whole | None = None
    max_tokens: Whole | None = None
    stream_options: StreamOptions | None = None
    response_format: dict[str, Any] | None = None
    guided_json: dict[str, Any] | str | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    guided_decoding_backend: str | None = None
    prompt_logprobs: Whole | None = None

    @property
    def include_usage(self) -> bool:
        """Whether the stream's last chunk carries the usage."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def continuous_usage(self) -> bool:
        """Whether each chunk of the stream carries the usage so far. vLLM asks for `include_usage`
        too.
        """
        return self.include_usage and bool(
            self.stream_options and self.stream_options.continuous_usage_stats
        )

    @property
    def wants_token_ids(self) -> bool:
        """Whether the answer tells the ids of its tokens and of its prompt's."""
        return bool(self.return_token_ids)

    def generating(self, *, max_tokens: int | None, logprobs: int | None) -> Sampling:
        """The sampling parameters, with the constraint in whichever form it was given."""
        if self.stream_options is not None and not self.stream:
            raise RequestError("stream_options needs stream to be true", param="stream_options")
        if self.prompt_logprobs is not None and self.stream:
            raise RequestError(
                "prompt_logprobs come with an answer that is not streamed", param="prompt_logprobs"
            )
        return self.to_sampling(
            max_tokens=max_tokens,
            logprobs=logprobs,
            structured=one_constraint(
                self.response_format,
                self.structured_outputs,
                {name: getattr(self, name) for name in GUIDED},
            ),
            prompt_logprobs=self.prompt_logprobs,
            unset=unset(self),
        )


class ChatBody(GenerationBody, kw_only=True):
    """Body of `POST /v1/chat/completions`: messages, tools and sampling.

    `names` are parameters under the names that the client sent, for errors; each body has them.
    """

    messages: Annotated[list[Message], Meta(min_length=1)]
    max_completion_tokens: Whole | None = None
    logprobs: bool | None = None
    top_logprobs: Whole | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    functions: list[dict[str, Any]] | None = None
    function_call: str | dict[str, Any] | None = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    continue_final_message: bool | None = None
    add_generation_prompt: bool | None = None
    echo: bool | None = None
    reasoning_effort: str | None = None
    add_special_tokens: bool | None = False
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    modalities: list[Literal["text"]] | None = None
    prediction: dict[str, Any] | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    safety_identifier: str | None = None

    def request(
        self, *, adapter: str | None = None, request_id: str = "", stream: bool | None = None
    ) -> ChatRequest:
        """The neutral request. `stream` None takes the body's own value."""
        check_messages(self.messages)
        if self.add_special_tokens:
            raise UnsupportedError(
                "a chat template adds the special tokens itself", param="add_special_tokens"
            )
        generates = begins_turn(self.add_generation_prompt, self.continue_final_message)
        messages = plain_messages(self.messages)
        tools, choice = self._tools()
        top = None
        if self.logprobs:
            top = self.top_logprobs or 0
        elif self.top_logprobs:
            raise RequestError("top_logprobs needs logprobs to be true", param="top_logprobs")
        return ChatRequest(
            messages=messages,
            sampling=self.generating(
                max_tokens=self.max_tokens
                if self.max_completion_tokens is None
                else self.max_completion_tokens,
                logprobs=top,
            ),
            n=1 if self.n is None else self.n,
            tools=tools,
            tool_choice=choice,
            chat_template=self.chat_template,
            chat_template_kwargs=with_effort(self.chat_template_kwargs, self.reasoning_effort),
            adapter=adapter,
            stream=bool(self.stream) if stream is None else stream,
            request_id=request_id,
            priority=self.priority or 0,
            parallel_tool_calls=self.parallel_tool_calls is not False and not self.functions,
            continue_final_message=bool(self.continue_final_message),
            add_generation_prompt=generates,
            echo=bool(self.echo),
        )

    @property
    def names(self) -> dict[str, str]:
        prompt = {"prompt": "messages"}
        if self.max_completion_tokens is None:
            return prompt
        return {**prompt, "max_tokens": "max_completion_tokens"}

    @property
    def tool_form(self) -> ToolForm:
        """The form of the calls in an answer."""
        if self.functions:
            return ToolForm(functions=True)
        custom = (t.get("custom") for t in self.tools or () if t.get("type") == "custom")
        return ToolForm(custom=frozenset(c["name"] for c in custom if c))

    def _tools(self) -> tuple[list[dict[str, Any]] | None, str | dict[str, Any] | None]:
        if not self.functions:
            # Auto is what tools are without it; with them, none would be dropped.
            nothing = (None, "auto") if self.tools else (None, "auto", "none")
            if self.function_call not in nothing:
                raise RequestError("function_call needs functions", param="function_call")
            tools, choice = plain_tools(self.tools, self.tool_choice)
        elif self.tools or self.tool_choice is not None:
            raise RequestError("give tools or functions, not both", param="functions")
        else:
            tools, choice = of_functions(self.functions, self.function_call)
        check_tools(tools, choice)
        return tools, choice


MOST_PROMPTS = 65_536
"""Prompts of a request for completions, whatever a server allows: each becomes a request."""


class CompletionBody(GenerationBody, kw_only=True):
    """Body of `POST /v1/completions`. `prompt` may hold several prompts: `requests` gives one
    request for each.
    """

    prompt: TextsOrIds
    logprobs: Whole | None = None
    echo: bool | None = None
    names: ClassVar = {"top_logprobs": "logprobs", "messages": "prompt"}
    suffix: str | None = None
    best_of: Whole | None = None
    add_special_tokens: bool = True

    def requests(
        self, *, adapter: str | None = None, request_id: str = "", stream: bool | None = None
    ) -> list[CompletionRequest]:
        """The neutral requests, in the order of the prompts. `max_tokens` defaults to 16, as
        in OpenAI's API.
        """
        prompts = texts_or_ids(self.prompt, "prompt")
        if len(prompts) > MOST_PROMPTS:
            raise RequestError(
                f"prompt has {len(prompts):,} texts: at most {MOST_PROMPTS:,} go into a request",
                param="prompt",
            )
        logprobs, n = self.logprobs, 1 if self.n is None else self.n
        if self.best is not None:
            assert self.best_of is not None
            if self.best_of < n or self.stream:
                why = "cannot be streamed" if self.stream else f"must be at least n, which is {n}"
                raise RequestError(f"best_of {why}", param="best_of")
            logprobs, n = logprobs or 0, self.best_of
        sampling = self.generating(
            max_tokens=16 if self.max_tokens is None else self.max_tokens, logprobs=logprobs
        )
        if self.use_beam_search and self.best_of is not None:
            extra = {**sampling.extra, "best_of": self.best_of}
            sampling = msgspec.structs.replace(sampling, extra=extra)
        return [
            CompletionRequest(
                prompt=prompt,
                sampling=sampling,
                n=n,
                echo=bool(self.echo),
                special_tokens=self.add_special_tokens,
                adapter=adapter,
                stream=bool(self.stream) if stream is None else stream,
                request_id=request_id if len(prompts) == 1 else f"{request_id}-{number}",
                priority=self.priority or 0,
            )
            for number, prompt in enumerate(prompts)
        ]

    @property
    def best(self) -> BestOf | None:
        """Which answers stay, where more were asked for than are wanted. A beam search returns the
        best of its own accord.
        """
        n = 1 if self.n is None else self.n
        if self.best_of is None or self.best_of == n or self.use_beam_search:
            return None
        return BestOf(n, self.logprobs is not None)


def begins_turn(add_generation_prompt: bool | None, continue_final_message: bool | None) -> bool:
    """Whether the prompt ends with the beginning of the assistant's turn; None states nothing.
    Raises `RequestError` if both are true.
    """
    if continue_final_message and add_generation_prompt:
        raise RequestError(
            "continue_final_message and add_generation_prompt cannot both be true",
            param="continue_final_message",
        )
    return add_generation_prompt is not False and not continue_final_message


def texts_or_ids(given: str | list[str | int | list[int]], param: str) -> list[str | list[int]]:
    """One text or many, or one list of token ids or many. Raises `RequestError` for a mixture."""
    if isinstance(given, str):
        return [given]
    ids = [item for item in given if isinstance(item, int)]
    if given and len(ids) == len(given):
        return [ids]
    several = [item for item in given if not isinstance(item, int)]
    if not several or ids or len({type(item) for item in several}) > 1:
        raise RequestError(
            f"{param} must be a text, token ids, a list of texts or a list of lists of ids",
            param=param,
        )
    return several


def input_texts(given: str | list[str]) -> list[str]:
    """The texts of an `input`, one or many. Raises `RequestError` for none, or an empty one."""
    texts = [given] if isinstance(given, str) else given
    if not texts or not all(texts):
        raise RequestError("input must not be empty", param="input")
    return texts


def with_effort(variables: dict[str, Any], effort: str | None) -> dict[str, Any]:
    """A chat template's variables, with `reasoning_effort` where it is given and not among them."""
    return variables if effort is None else {"reasoning_effort": effort, **variables}


def bias_pairs(given: Mapping[str, float] | None) -> tuple[tuple[int, float], ...]:
    """`logit_bias` as pairs of token id and value. JSON's keys are texts; raises `RequestError` for
    one that is not a token id as numbers are written: " 4", "+4" and "04" are none.
    """
    for token in given or ():
        # Python's own reading of numbers would take more, and several forms of one id.
        if not _TOKEN_ID.fullmatch(token):
            raise RequestError(
                f"logit_bias maps token ids to numbers; its key {token[:40]!r} is no token id",
                param="logit_bias",
            )
    return tuple((int(token), value) for token, value in (given or {}).items())


def begun_by_assistant(messages: list[Message]) -> bool:
    """Whether the last message is a text of the assistant, which an answer could continue."""
    last = messages[-1]
    return last.get("role") == "assistant" and not last.get("tool_calls")


def check_messages(messages: list[Message]) -> None:
    """Raise `RequestError` naming the first message that no template could read."""
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        role = message.get("role")
        if not isinstance(role, str) or role not in ROLES:
            raise RequestError(
                f"{where}.role must be one of {', '.join(sorted(ROLES))}, not {role!r}", param=where
            )
        calls = message.get("tool_calls")
        if calls is not None and not (
            isinstance(calls, list) and all(isinstance(call, dict) for call in calls)
        ):
            raise RequestError(
                f"{where}.tool_calls must be a list of objects", param=f"{where}.tool_calls"
            )
        for place, call in enumerate(calls or ()):
            named = call.get("type") == "custom" or call.get("custom") is not None
            form = "custom" if named else "function"
            called = call.get(form)
            if not isinstance(called, Mapping) or not isinstance(called.get("name"), str):
                inside = f"{where}.tool_calls[{place}].{form}"
                raise RequestError(f"{inside} needs a 'name'", param=inside)
        content = message.get("content")
        if content is None and (role == "assistant" or "tool_calls" in message):
            continue
        if not isinstance(content, (str, list)):
            raise RequestError(
                f"{where}.content must be a text or a list of parts", param=f"{where}.content"
            )
        for part in content if isinstance(content, list) else ():
            if not isinstance(part, dict) or not isinstance(part.get("type"), str):
                raise RequestError(
                    f"{where}.content: every part needs a 'type'", param=f"{where}.content"
                )
            if part["type"] == "text" and not isinstance(part.get("text"), str):
                raise RequestError(
                    f"{where}.content: a part of type 'text' needs a 'text'",
                    param=f"{where}.content",
                )
