"""Request bodies in OpenAI's form: checks them and turns them into neutral requests.

Every mistake is a `RequestError` that names the parameter. Parameters of OpenAI's API without an
effect here (`user`, `store` …) are accepted; unsupported and unknown ones are refused. Sampling
extras have vLLM's names (`top_k`, `min_p`, `repetition_penalty`, `min_tokens`, `stop_token_ids`,
`ignore_eos`, `structured_outputs`). Source: https://platform.openai.com/docs/api-reference.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct, field

from penstock.errors import RequestError, UnsupportedError, nearest
from penstock.openai.tools import check_tools
from penstock.types import (
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
    Message,
    Sampling,
    StructuredOutput,
)

ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})
Body = TypeVar("Body", bound=Struct)
Count = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Whole = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
"""An integer of 64 bits, which every engine can hold; JSON allows thousands of digits."""
TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]


class StreamOptions(Struct, forbid_unknown_fields=True):
    """`stream_options`: whether the last chunk carries the usage."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: bool | None = None


class StructuredOutputs(Struct, forbid_unknown_fields=True):
    """`structured_outputs`, vLLM's name for a constraint beyond `response_format`."""

    json: dict[str, Any] | str | None = None
    regex: str | None = None
    json_object: bool | None = None


class SamplingBody(Struct, kw_only=True):
    """Parameters that chat and plain completions share."""

    model: str = ""
    temperature: float | None = None
    top_p: float | None = None
    n: Whole | None = None
    stop: str | list[str] | None = None
    seed: Whole | None = None
    max_tokens: Whole | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: dict[str, Any] | None = None
    structured_outputs: StructuredOutputs | None = None
    top_k: Whole | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    min_tokens: Whole | None = None
    stop_token_ids: list[TokenId] | None = None
    ignore_eos: bool | None = None
    priority: Whole | None = None
    logit_bias: dict[str, float] | None = None
    prompt_logprobs: Whole | None = None
    allowed_token_ids: list[TokenId] | None = None
    bad_words: list[str] | None = None
    user: str | None = None

    @property
    def include_usage(self) -> bool:
        """Whether the stream's last chunk carries the usage."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    def sampling(self, *, max_tokens: int | None, logprobs: int | None) -> Sampling:
        """The sampling parameters. Omitted values take OpenAI's defaults."""
        if self.stream_options is not None and not self.stream:
            raise RequestError("stream_options needs stream to be true", param="stream_options")
        if self.stream_options is not None and self.stream_options.continuous_usage_stats:
            raise UnsupportedError(
                "continuous_usage_stats is not supported", param="stream_options"
            )
        if self.prompt_logprobs is not None and self.stream:
            raise RequestError(
                "prompt_logprobs come with an answer that is not streamed", param="prompt_logprobs"
            )
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        given = {
            "min_tokens": self.min_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "min_p": self.min_p,
            "seed": self.seed,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "repetition_penalty": self.repetition_penalty,
            "ignore_eos": self.ignore_eos,
        }
        return Sampling(
            max_tokens=max_tokens,
            stop=stop,
            stop_token_ids=tuple(self.stop_token_ids or ()),
            logprobs=logprobs,
            structured=self._structured(),
            prompt_logprobs=self.prompt_logprobs,
            logit_bias=bias_pairs(self.logit_bias),
            allowed_token_ids=tuple(self.allowed_token_ids or ()),
            bad_words=tuple(self.bad_words or ()),
            **{  # type: ignore[arg-type]
                name: value for name, value in given.items() if value is not None
            },
        )

    def _structured(self) -> StructuredOutput | None:
        wanted, param = self.structured_outputs, "structured_outputs"
        if wanted is None:
            return parse_response_format(self.response_format)
        if self.response_format is not None:
            raise RequestError("give response_format or structured_outputs, not both", param=param)
        given = [
            name
            for name in ("json", "json_object", "regex")
            if getattr(wanted, name) not in (None, False)
        ]
        if len(given) > 1:
            raise RequestError(
                "structured_outputs takes one of json, json_object and regex, not"
                f" {' and '.join(given)}",
                param=param,
            )
        if wanted.regex is not None:
            return StructuredOutput("regex", wanted.regex, param=param)
        if wanted.json is not None:
            if isinstance(wanted.json, str) and not _is_object(wanted.json):
                raise RequestError(
                    "structured_outputs.json must hold a JSON schema, an object, not"
                    f" {ascii(wanted.json)[:80]}",
                    param="structured_outputs.json",
                )
            return StructuredOutput("json_schema", _schema_text(wanted.json), param=param)
        return StructuredOutput("json_object", param=param) if wanted.json_object else None


class ChatBody(SamplingBody, kw_only=True):
    """Body of `POST /v1/chat/completions`: messages, tools and sampling."""

    messages: Annotated[list[Message], Meta(min_length=1)]
    max_completion_tokens: Whole | None = None
    logprobs: bool | None = None
    top_logprobs: Whole | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    reasoning_effort: str | None = None
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
        check_tools(self.tools, self.tool_choice)
        top = None
        if self.logprobs:
            top = self.top_logprobs or 0
        elif self.top_logprobs:
            raise RequestError("top_logprobs needs logprobs to be true", param="top_logprobs")
        return ChatRequest(
            messages=self.messages,
            sampling=self.sampling(
                max_tokens=(
                    self.max_tokens
                    if self.max_completion_tokens is None
                    else self.max_completion_tokens
                ),
                logprobs=top,
            ),
            n=1 if self.n is None else self.n,
            tools=self.tools or None,
            tool_choice=self.tool_choice,
            chat_template=self.chat_template,
            chat_template_kwargs=with_effort(self.chat_template_kwargs, self.reasoning_effort),
            adapter=adapter,
            stream=bool(self.stream) if stream is None else stream,
            request_id=request_id,
            priority=self.priority or 0,
            parallel_tool_calls=self.parallel_tool_calls is not False,
        )


class CompletionBody(SamplingBody, kw_only=True):
    """Body of `POST /v1/completions`. `prompt` may hold several prompts: `requests` gives one
    request for each.
    """

    prompt: str | list[str | TokenId | list[TokenId]]
    logprobs: Whole | None = None
    echo: bool | None = None
    suffix: str | None = None
    best_of: Whole | None = None
    add_special_tokens: bool = True

    def requests(
        self, *, adapter: str | None = None, request_id: str = "", stream: bool | None = None
    ) -> list[CompletionRequest]:
        """The neutral requests, in the order of the prompts. `max_tokens` defaults to 16, as
        in OpenAI's API.
        """
        if self.suffix:
            raise UnsupportedError("suffix is not supported", param="suffix")
        if self.best_of not in (None, 1, self.n):
            raise UnsupportedError("best_of is not supported", param="best_of")
        prompts = self._prompts()
        sampling = self.sampling(
            max_tokens=16 if self.max_tokens is None else self.max_tokens, logprobs=self.logprobs
        )
        return [
            CompletionRequest(
                prompt=prompt,
                sampling=sampling,
                n=1 if self.n is None else self.n,
                echo=bool(self.echo),
                special_tokens=self.add_special_tokens,
                adapter=adapter,
                stream=bool(self.stream) if stream is None else stream,
                request_id=request_id if len(prompts) == 1 else f"{request_id}-{number}",
                priority=self.priority or 0,
            )
            for number, prompt in enumerate(prompts)
        ]

    def _prompts(self) -> list[str | list[int]]:
        given = self.prompt
        if isinstance(given, str):
            return [given]
        ids = [item for item in given if isinstance(item, int)]
        if given and len(ids) == len(given):
            return [ids]
        prompts = [item for item in given if not isinstance(item, int)]
        if not prompts or ids or len({type(item) for item in prompts}) > 1:
            raise RequestError(
                "prompt must be a text, token ids, a list of texts or a list of lists of ids",
                param="prompt",
            )
        return prompts


class EmbeddingBody(Struct, kw_only=True):
    """Body of `POST /v1/embeddings`: one text or many, or token ids."""

    model: str = ""
    input: str | list[str]
    dimensions: Count | None = None
    encoding_format: Literal["float", "base64"] = "float"
    user: str | None = None

    def request(self, *, request_id: str = "") -> EmbeddingRequest:
        return EmbeddingRequest(input_texts(self.input), self.dimensions, request_id)


def input_texts(given: str | list[str]) -> list[str]:
    """The texts of an `input`, one or many. Raises `RequestError` for none, or an empty one."""
    texts = [given] if isinstance(given, str) else given
    if not texts or not all(texts):
        raise RequestError("input must not be empty", param="input")
    return texts


def with_effort(variables: dict[str, Any], effort: str | None) -> dict[str, Any]:
    """A chat template's variables, with `reasoning_effort` where it is given and not among them."""
    return variables if effort is None else {"reasoning_effort": effort, **variables}


def parse_body(form: type[Body], body: Any) -> Body:
    """Check a decoded JSON body against its form. Raises `RequestError` naming the parameter.

    Null counts as absent, for unknown names too: clients with typed bodies send the fields of
    every server's API.
    """
    if not isinstance(body, Mapping):
        raise RequestError("the request body must be a JSON object")
    known = _names(form)
    body = {name: value for name, value in body.items() if value is not None or known.get(name)}
    for name in body:
        if name not in known:
            hint = nearest(str(name), known)
            raise RequestError(f"unknown parameter '{name}'. {hint}", param=str(name))
    try:
        return msgspec.convert(body, form, strict=True)
    except msgspec.ValidationError:
        from penstock.validation import mismatch  # imported only for an error

        found = mismatch(form, body)
        raise RequestError(str(found), param=found.place or None) from None


@cache
def _names(form: type[Struct]) -> dict[str, bool]:
    """Field name → whether it is required. Cached, because inspecting a form takes milliseconds."""
    return {f.encode_name: f.required for f in msgspec.structs.fields(form)}


def parse_response_format(given: dict[str, Any] | None) -> StructuredOutput | None:
    """`response_format` as a constraint. Its types: text, json_object, json_schema and regex
    (`{"type": "regex", "pattern": …}`).
    """
    if given is None or given.get("type") == "text":
        return None
    kind = given.get("type")
    if kind == "json_object":
        return StructuredOutput("json_object")
    if kind == "json_schema":
        holder = given.get("json_schema")
        schema = holder.get("schema") if isinstance(holder, dict) else given.get("schema")
        if not isinstance(schema, dict):
            raise RequestError(
                "json_schema needs a 'schema' object", param="response_format.json_schema"
            )
        return StructuredOutput("json_schema", _schema_text(schema))
    if kind == "regex":
        pattern = given.get("pattern", given.get("regex"))
        if not isinstance(pattern, str):
            raise RequestError("regex needs a 'pattern' text", param="response_format.pattern")
        return StructuredOutput("regex", pattern)
    hint = nearest(str(kind), ("text", "json_object", "json_schema", "regex"))
    raise RequestError(
        f"unknown response_format type {kind!r}. {hint}", param="response_format.type"
    )


def _is_object(text: str) -> bool:
    try:
        return isinstance(msgspec.json.decode(text), dict)
    except (ValueError, RecursionError):
        return False


def _schema_text(schema: dict[str, Any] | str) -> str:
    return schema if isinstance(schema, str) else json.dumps(schema, ensure_ascii=False)


def bias_pairs(given: Mapping[str, float] | None) -> tuple[tuple[int, float], ...]:
    """`logit_bias` as pairs of token id and value. JSON's keys are texts; raises `RequestError` for
    one that is no number.
    """
    try:
        return tuple((int(token), value) for token, value in (given or {}).items())
    except ValueError:
        raise RequestError(
            "logit_bias maps token ids to numbers; a key is no token id", param="logit_bias"
        ) from None


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
        content = message.get("content")
        if content is None and (role == "assistant" or "tool_calls" in message):
            continue
        if not isinstance(content, (str, list)):
            raise RequestError(
                f"{where}.content must be a text or a list of parts", param=f"{where}.content"
            )
        if isinstance(content, list) and not all(
            isinstance(part, dict) and "type" in part for part in content
        ):
            raise RequestError(
                f"{where}.content: every part needs a 'type'", param=f"{where}.content"
            )
