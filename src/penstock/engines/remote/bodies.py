"""Builds bodies of OpenAI's API from neutral requests, with vLLM's names for parameters that OpenAI
lacks.

Parameters at their defaults are omitted, so that servers which do not know them accept the request.
The temperature is always sent, as servers have different defaults.
"""

from __future__ import annotations

import json
from typing import Any

from penstock.engines.remote.dialects import Dialect, score_body
from penstock.types import ChatRequest, CompletionRequest, Sampling, StructuredOutput

_DEFAULTS = Sampling()
_SAME_NAME = (
    *(
        "top_p",
        "top_k",
        "min_p",
        "min_tokens",
        "seed",
        "presence_penalty",
        "frequency_penalty",
        "repetition_penalty",
    ),
    *("stop", "stop_token_ids", "ignore_eos"),
)


def chat_body(request: ChatRequest, model: str, max_tokens_field: str) -> dict[str, Any]:
    """The body of `/chat/completions`. `max_tokens_field` is the server's name for the length
    limit.
    """
    body: dict[str, Any] = {
        "model": model,
        "messages": request.messages,
        **_common(request, max_tokens_field),
    }
    if request.sampling.logprobs is not None:
        body["logprobs"] = True
        if request.sampling.logprobs:
            body["top_logprobs"] = request.sampling.logprobs
    for name in ("tools", "tool_choice", "chat_template", "chat_template_kwargs"):
        if value := getattr(request, name):
            body[name] = value
    if not request.parallel_tool_calls and request.tools:
        body["parallel_tool_calls"] = False
    return body


def completion_body(request: CompletionRequest, model: str) -> dict[str, Any]:
    """The body of `/completions`. Without `max_tokens` the server's default applies: 16 in OpenAI's
    API.
    """
    body: dict[str, Any] = {
        "model": model,
        "prompt": request.prompt,
        **_common(request, "max_tokens"),
    }
    if request.sampling.logprobs is not None:
        body["logprobs"] = request.sampling.logprobs
    if request.echo:
        body["echo"] = True
    if not request.special_tokens and isinstance(request.prompt, str):
        body["add_special_tokens"] = False
    return body


def task_body(task: str, request: Any, dialect: Dialect) -> dict[str, Any]:
    """Body of any other task, less the model."""
    match task:
        case "embeddings" if request.dimensions is not None:
            return {"input": request.inputs, "dimensions": request.dimensions}
        case "embeddings" | "classify":
            return {"input": request.inputs}
        case "score":
            return score_body(dialect, request.query, request.documents)
        case "rerank":
            return {"query": request.query, "documents": request.documents}
        case "transcriptions":
            form = {"language": request.language, "max_tokens": request.max_tokens}
            if request.timestamps:
                form["response_format"] = "verbose_json"
            return {name: str(value) for name, value in form.items() if value is not None}
        case "tokenize" if dialect == "penstock":
            return {"prompt": request}
        case "tokenize":
            return {"prompt": request, "add_special_tokens": False}
        case _:
            return {"tokens": request}


def _common(request: ChatRequest | CompletionRequest, max_tokens_field: str) -> dict[str, Any]:
    sampling = request.sampling
    body: dict[str, Any] = {"temperature": sampling.temperature}
    for name in _SAME_NAME:
        if (value := getattr(sampling, name)) != getattr(_DEFAULTS, name):
            body[name] = value
    if sampling.max_tokens is not None:
        body[max_tokens_field] = sampling.max_tokens
    if sampling.structured is not None:
        body.update(_constraint(sampling.structured))
    if request.n != 1:
        body["n"] = request.n
    if request.kv_transfer_params is not None:
        body["kv_transfer_params"] = request.kv_transfer_params
    if request.priority:
        body["priority"] = request.priority
    if request.stream:
        body["stream"] = True
    return body


def _constraint(structured: StructuredOutput) -> dict[str, Any]:
    if structured.kind in ("regex", "grammar"):
        return {"structured_outputs": {structured.kind: structured.spec}}
    if structured.kind == "json_object":
        return {"response_format": {"type": "json_object"}}
    schema = {"name": "answer", "schema": json.loads(structured.spec), "strict": True}
    return {"response_format": {"type": "json_schema", "json_schema": schema}}
