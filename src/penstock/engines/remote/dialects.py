"""How servers differ from vLLM, whose additions to OpenAI's API count as the standard here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from penstock.errors import UnsupportedError

Dialect = Literal["openai", "penstock", "sglang", "vllm"]

PATHS: Mapping[Dialect, Mapping[str, str]] = {
    # SGLang's `/score` weighs tokens, and its `/classify` outside of "/v1" is its native API.
    "sglang": {"/score": "/rerank", "//classify": "/classify"}
}
"""Paths that a dialect has elsewhere."""


def dialect_of(owned_by: str | None, engine: str | None) -> Dialect:
    """The dialect of a server, by the `owned_by` and (a Penstock server's) `engine` in
    `/models`.
    """
    if engine is not None:
        return "penstock"
    if owned_by == "sglang":
        return "sglang"
    return "vllm" if owned_by == "vllm" else "openai"


def adapter_name(dialect: Dialect, model: str, listed: str) -> str:
    """The model name for requests to an adapter that `/models` lists. SGLang would answer the bare
    name with its base model.
    """
    return f"{model}:{listed}" if dialect == "sglang" else listed


def spoken(dialect: Dialect, body: dict[str, Any]) -> dict[str, Any]:
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
