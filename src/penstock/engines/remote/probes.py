"""The smallest request of each kind: it finds out whether a server is well, and whether it has a route."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from penstock.engines.remote.dialects import Dialect, score_body, spoken
from penstock.engines.remote.options import RemoteOptions

_TEXT = "Hi"


def probe_body(path: str, model: str, dialect: Dialect, options: RemoteOptions) -> dict[str, Any] | None:
    """The body that asks a path such as "/chat/completions" for as little as there is; None for a path that it is not
    known for.
    """
    limit: dict[str, Any] = {options.max_tokens_field: 1}
    bodies: Mapping[str, dict[str, Any]] = {
        "/chat/completions": {"messages": [{"role": "user", "content": _TEXT}], **limit, **options.extra_body},
        "/completions": {"prompt": _TEXT, "max_tokens": 1, **options.extra_body},
        "/embeddings": {"input": [_TEXT]},
        "/score": score_body(dialect, _TEXT, [_TEXT]),
        "/rerank": {"query": _TEXT, "documents": [_TEXT]},
        "//classify": {"input": [_TEXT]},
    }
    body = bodies.get(path)
    return None if body is None else spoken(dialect, {"model": model, **body})
