"""Paths and bodies of requests: OpenAI's API, with vLLM's additions and where other servers differ.

Parameters at their defaults are omitted, so that servers which do not know them accept the request.
The temperature is always sent, as servers have different defaults.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

from penstock.engines.remote.decisions import decision_body
from penstock.errors import UnsupportedError
from penstock.types import (
    SAME_NAME,
    ChatRequest,
    CompletionRequest,
    Sampling,
    StructuredOutput,
    TokenizeRequest,
    TranscriptionRequest,
)

Dialect = Literal["openai", "penstock", "sglang"]

PATHS = {
    "chat": "/chat/completions",
    "completions": "/completions",
    "decide": "/decisions",
    "embeddings": "/embeddings",
    "score": "/score",
    "rerank": "/rerank",
    "classify": "//classify",
    "transcriptions": "/audio/transcriptions",
    "speech": "/audio/speech",
    "tokenize": "//tokenize",
    "detokenize": "//detokenize",
    "tokens": "//tokenize",
    "tokenizer_info": "//tokenizer_info",
}
"""The paths of tasks, below "/v1". Two slashes: not below it."""
OTHER_PATHS: Mapping[Dialect, Mapping[str, str]] = {
    # SGLang's `/score` weighs tokens, and its `/classify` outside of "/v1" is its native API.
    "sglang": {"/score": "/rerank", "//classify": "/classify"}
}
"""Paths that a dialect has elsewhere."""
_DEFAULTS = Sampling()
_OPENAIS = ("temperature", "top_p", "presence_penalty", "frequency_penalty")
"""What every server knows, so that it may be sent where it is its default."""


def dialect_of(owned_by: str | None, engine: str | None) -> Dialect:
    """The dialect of a server by its card: only Penstock's cards have an `engine`."""
    if engine is not None:
        return "penstock"
    return "sglang" if owned_by == "sglang" else "openai"


def adapter_name(dialect: Dialect, model: str, listed: str) -> str:
    """The model name for requests to an adapter that `/models` lists. SGLang would answer the bare
    name with its base model.
    """
    return f"{model}:{listed}" if dialect == "sglang" else listed


def in_dialect(dialect: Dialect, body: dict[str, Any]) -> dict[str, Any]:
    """The body of a chat or completion in a dialect. Raises `UnsupportedError` for fields that the
    server would silently ignore.
    """
    if dialect != "sglang":
        return body
    if "chat_template" in body:
        raise UnsupportedError(
            "SGLang's server takes no chat_template with a request", param="chat_template"
        )
    constraint = body.pop("structured_outputs", None)  # SGLang wants its keys in the body itself
    if constraint is None:
        return body
    if "grammar" in constraint:
        return {**body, "ebnf": constraint["grammar"]}
    return {**body, **constraint}


def score_body(dialect: Dialect, query: str, documents: list[str]) -> dict[str, Any]:
    """The body of a score request, without the model."""
    if dialect == "sglang":
        return {"query": query, "documents": documents}
    return {"text_1": query, "text_2": documents}


def chat_body(request: ChatRequest, model: str, max_tokens_field: str) -> dict[str, Any]:
    """The body of `/chat/completions`. The server calls the length limit `max_tokens_field`."""
    sampling, tools = request.sampling, request.tools
    return {
        "model": model,
        "messages": request.messages,
        **_common(request, max_tokens_field),
        **_given(
            logprobs=None if sampling.logprobs is None else True,
            top_logprobs=sampling.logprobs or None,
            tools=tools or None,
            tool_choice=request.tool_choice or None,
            **_template(request),
            parallel_tool_calls=False if tools and not request.parallel_tool_calls else None,
            echo=request.echo or None,
        ),
        **_prompt_end(request),
    }


def _template(request: ChatRequest) -> dict[str, Any]:
    return {
        "chat_template": request.chat_template or None,
        "chat_template_kwargs": request.chat_template_kwargs or None,
    }


def _prompt_end(request: ChatRequest) -> dict[str, Any]:
    """How the prompt of a conversation ends, where that is not the usual way."""
    return _given(
        continue_final_message=request.continue_final_message or None,
        add_generation_prompt=None if request.add_generation_prompt else False,
    )


def completion_body(request: CompletionRequest, model: str) -> dict[str, Any]:
    """The body of `/completions`. OpenAI's API answers at most 16 tokens by default."""
    special = request.special_tokens or not isinstance(request.prompt, str)
    return {
        "model": model,
        "prompt": request.prompt,
        **_common(request, "max_tokens"),
        **_given(
            logprobs=request.sampling.logprobs,
            echo=request.echo or None,
            add_special_tokens=None if special else False,
        ),
    }


def task_body(task: str, request: Any, dialect: Dialect) -> dict[str, Any]:
    """The body of any other task, without the model."""
    match task:
        case "decide":
            return decision_body(request, dialect == "penstock")
        case "embeddings":
            # Of others, a text that is too long shows in their refusal.
            cuts = request.truncate and dialect == "penstock"
            chats = [one for one in request.inputs if isinstance(one, ChatRequest)]
            if chats and len(request.inputs) > 1:
                raise UnsupportedError(
                    "servers and engines of Ray's form make a vector of one conversation at a time",
                    param="input",
                )
            given = _conversation(chats[0]) if chats else {"input": request.inputs}
            return given | _given(
                dimensions=request.dimensions,
                input_type=request.input_type,
                truncate_prompt_tokens=-1 if cuts else None,
            )
        case "classify":
            return {"input": request.inputs}
        case "score":
            return score_body(dialect, request.query, request.documents)
        case "rerank":
            return {"query": request.query, "documents": request.documents}
        case "transcriptions":
            return _transcription_form(request, dialect)
        case "speech":
            return _given(
                input=request.text, voice=request.voice, speed=request.speed, response_format="wav"
            )
        case "tokenize":
            return {"prompt": request, "add_special_tokens": False}
        case "tokens":
            return _tokens_body(request)
        case _:
            return {"tokens": request}


def _given(**fields: Any) -> dict[str, Any]:
    """The fields that have a value."""
    return {name: value for name, value in fields.items() if value is not None}


def _transcription_form(request: TranscriptionRequest, dialect: Dialect) -> dict[str, Any]:
    if request.hotwords and dialect != "penstock":
        raise UnsupportedError(
            "servers of OpenAI's form know no hotwords: put them into the prompt", param="hotwords"
        )
    form = _given(
        language=request.language,
        max_tokens=request.max_tokens,
        prompt=request.prompt or None,
        hotwords=request.hotwords or None,
        response_format="verbose_json" if request.timestamps or request.words else None,
    )
    found: dict[str, Any] = {name: str(value) for name, value in form.items()}
    if request.words:  # OpenAI leaves out what is not named
        found["timestamp_granularities[]"] = ["word", "segment"] if request.timestamps else ["word"]
    return found


def _tokens_body(request: TokenizeRequest) -> dict[str, Any]:
    chat = request.chat
    body = _given(
        add_special_tokens=request.special_tokens, return_token_strs=request.names or None
    )
    if chat is None:
        return {"prompt": request.prompt, **body}
    tools = chat.tools if chat.tool_choice != "none" else None
    return {**body, **_conversation(chat), **_given(tools=tools or None)}


def _conversation(chat: ChatRequest) -> dict[str, Any]:
    """What becomes the prompt of a conversation without tools."""
    return {"messages": chat.messages, **_given(**_template(chat)), **_prompt_end(chat)}


def _common(request: ChatRequest | CompletionRequest, max_tokens_field: str) -> dict[str, Any]:
    sampling = request.sampling
    body: dict[str, Any] = {
        name: value
        for name in (*SAME_NAME, "stop", "stop_token_ids")
        if (value := getattr(sampling, name)) != getattr(_DEFAULTS, name)
    }
    # The server's model may have defaults of its own for what the request leaves out.
    stated = _OPENAIS if sampling.unset else _OPENAIS[:1]
    body |= {name: getattr(sampling, name) for name in stated if name not in sampling.unset}
    form = {} if sampling.structured is None else _constraint(sampling.structured)
    return body | _given(
        **{max_tokens_field: sampling.max_tokens},
        **form,
        n=None if request.n == 1 else request.n,
        kv_transfer_params=request.kv_transfer_params,
        priority=request.priority or None,
        stream=request.stream or None,
    )


def _constraint(structured: StructuredOutput) -> dict[str, Any]:
    if structured.kind in ("regex", "grammar"):
        return {"structured_outputs": {structured.kind: structured.spec}}
    if structured.kind == "json_object":
        return {"response_format": {"type": "json_object"}}
    schema = {"name": "answer", "schema": json.loads(structured.spec), "strict": True}
    return {"response_format": {"type": "json_schema", "json_schema": schema}}
