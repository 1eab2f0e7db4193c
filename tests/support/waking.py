"""What wakes no model that is scaled to zero: requests that its engine is not to answer."""

from __future__ import annotations

import re
from typing import Any

from penstock.serve.api.routes import CONTROL_ENDPOINTS, ENDPOINTS

GETS = [
    re.sub(r"{[^}]+}", "m", one.path)
    for one in (*ENDPOINTS, *CONTROL_ENDPOINTS)
    if one.method == "GET"
]
MALFORMED: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {}),
    ("/v1/chat/completions", {"messages": []}),
    ("/v1/chat/completions", {"messages": [{"role": "nobody"}]}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}], "max_token": 3}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}], "stream": "x"}),
    ("/v1/completions", {}),
    ("/v1/completions", {"prompt": "a", "max_tokens": -1, "stream": True}),
    ("/v1/completions", {"prompt": [[]]}),
    ("/v1/responses", {}),
    ("/v1/messages", {"messages": []}),
    ("/v1/messages/count_tokens", {}),
    ("/v1/embeddings", {}),
    ("/v1/score", {}),
    ("/v1/rerank", {}),
    ("/pooling", {}),
    ("/classify", {}),
    ("/invocations", {}),
    ("/tokenize", {}),
    ("/tokenize", {"messages": []}),
    ("/detokenize", {}),
]
BEYOND: list[tuple[str, dict[str, Any], str]] = [
    ("/v1/completions", {"prompt": [5, 300]}, "prompt"),
    ("/v1/completions", {"prompt": [[5], [5, 300]]}, "prompt"),
    ("/v1/completions", {"prompt": "a", "stop_token_ids": [300]}, "stop_token_ids"),
    ("/v1/embeddings", {"input": [[5, 300]]}, "input"),
    ("/detokenize", {"tokens": [5, 300]}, "tokens"),
]
"""Token ids beyond the simulated engine's vocabulary, and the parameter that has them."""
DAMAGED = [
    *(("regex", one) for one in ("[a", "(a", "a)", "*a", "a|+", "a{3,1}", "(?:a", r"\d{2}(")),
    *(("grammar", one) for one in ("", "root")),
]
"""Constraints that no engine can read, by their kinds."""
BROKEN = [b"", b"{", b"[]", b'{"model": 3}', b'{"model": "m", "messages": "\xff"}']
CONTROL_BODIES: dict[str, dict[str, Any]] = {
    "/collective_rpc": {"options": {"method": "a"}},
    "/v1/load_lora_adapter": {"lora_name": "a", "lora_path": "/nowhere"},
    "/v1/unload_lora_adapter": {"lora_name": "a"},
}
CONTROLS: list[tuple[str, dict[str, Any]]] = [
    (one.path, CONTROL_BODIES.get(one.path, {}))
    for one in CONTROL_ENDPOINTS
    if one.method == "POST" and one.path != "/load_model"  # that is what it is for
]
NO_MODELS = ["n", "m:", "m:none", "m:none:none", "other:none"]
CHAT: dict[str, Any] = {
    "model": "m",
    "messages": [{"role": "user", "content": "a"}],
    "max_tokens": 2,
}
