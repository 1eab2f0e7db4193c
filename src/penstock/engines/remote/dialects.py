"""What servers do otherwise than vLLM, whose additions to OpenAI's API are taken to be common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from penstock.errors import UnsupportedError

Dialect = Literal["openai", "penstock", "sglang", "vllm"]

PATHS: Mapping[Dialect, Mapping[str, str]] = {
    # Its own score weighs tokens, and its `/classify` beside "/v1" is its native one.
    "sglang": {"/score": "/rerank", "//classify": "/classify"}
}
"""Where a server has a path elsewhere."""


def dialect_of(owned_by: str | None, engine: str | None) -> Dialect:
    """Told by what `/models` says of the owner and, where it is one of ours, the engine."""
    if engine is not None:
        return "penstock"
    if owned_by == "sglang":
        return "sglang"
    return "vllm" if owned_by == "vllm" else "openai"


def adapter_name(dialect: Dialect, model: str, listed: str) -> str:
    """What a request calls an adapter that `/models` lists. SGLang would answer its bare name with
    the base model.
    """
    return f"{model}:{listed}" if dialect == "sglang" else listed


def spoken(dialect: Dialect, body: dict[str, Any]) -> dict[str, Any]:
    """The body of a chat or completion. Raises `UnsupportedError` for what the server would pass
    over in silence.
    """
    if dialect != "sglang":
        return body
    if "chat_template" in body:
        raise UnsupportedError(
            "SGLang's server takes no chat_template with a request", param="chat_template"
        )
    constraint = body.pop("structured_outputs", None)  # its keys stand in the body itself
    return body if constraint is None else {**body, **constraint}


def score_body(dialect: Dialect, query: str, documents: list[str]) -> dict[str, Any]:
    """The body of a score, less the model."""
    if dialect == "sglang":
        return {"query": query, "documents": documents}
    return {"text_1": query, "text_2": documents}
