"""Random requests to a server: each gets an answer in the API's form, and the engine lives on."""

from __future__ import annotations

import json
import math
import random
import time
from pathlib import Path
from typing import Any

import httpx
from promises import Promise
from server import CHAT, chat, serving

_NUMBERS = (
    0,
    1,
    -1,
    2,
    0.5,
    1.5,
    1e-320,
    1e-46,
    1e38,
    1e39,
    1e308,
    -0.0,
    2**31,
    2**63,
    2**64,
    -(2**63),
)
_ODD: tuple[Any, ...] = (
    *(None, True, False, *_NUMBERS, "", "x", "\0", "\ud83d", "a" * 5000, "/etc/passwd", "nan"),
    *([], [None], [[]], {}, {"a": None}, [0, -1, 2**40]),
)
_NUMERIC = (
    *(
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "max_tokens",
        "seed",
        "n",
        "min_tokens",
        "logprobs",
        "top_logprobs",
    ),
    *("presence_penalty", "frequency_penalty", "repetition_penalty"),
)
_OTHERS = (
    *(
        "max_completion_tokens",
        "stop",
        "stream",
        "logit_bias",
        "tools",
        "tool_choice",
        "response_format",
        "messages",
    ),
    *(
        "model",
        "user",
        "stop_token_ids",
        "stream_options",
        "metadata",
        "store",
        "functions",
        "guided_regex",
    ),
    *("priority", "echo", "suffix", "best_of", "prompt", "input"),
)
_PATHS = (
    CHAT,
    CHAT,
    CHAT,
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
    "/v1/embeddings",
    "/tokenize",
)


def campaign(seed: int, deadline: float, folder: Path) -> list[Promise]:
    """Bodies with odd values in known fields, bodies with odd bytes, odd methods and headers."""
    form = Promise(
        "A random request is answered, or refused by an error in the API's form; never a 500"
    )
    alive = Promise("No request ends the engine's process")
    chance = random.Random(seed)
    with (
        serving("--max-tokens", "16") as server,
        httpx.Client(base_url=server.url, timeout=60) as client,
    ):
        pids = server.engine_pids()
        while time.monotonic() < deadline:
            path = chance.choice(_PATHS)
            content = _body(path, chance)
            try:
                answer = client.post(
                    path, content=content, headers={"content-type": "application/json"}
                )
            except httpx.HTTPError as error:
                form.broke(f"{path} {content[:200]!r}: {type(error).__name__}")
                continue
            if answer.status_code == 200:
                form.held("answered")
            elif 400 <= answer.status_code < 500 or answer.status_code == 503:
                told = answer.json().get("error", {}).get("message") if answer.content else None
                form.held("refused") if told else form.broke(
                    f"{path} {content[:200]!r}: {answer.text[:200]}"
                )
            else:
                form.broke(f"{path} {content[:300]!r}: {answer.status_code} {answer.text[:200]}")
            now = server.engine_pids()
            alive.held() if now == pids else alive.broke(f"{path} {content[:300]!r}")
            pids = now
    return [form, alive]


def _body(path: str, chance: random.Random) -> bytes:
    body: dict[str, Any] = chat("My Solara 77 arrived broken.", max_tokens=4)
    if path in ("/v1/completions", "/tokenize"):
        body = {"model": "demo", "prompt": "My Solara", "max_tokens": 4}
    elif path in ("/v1/responses", "/v1/embeddings"):
        body = {"model": "demo", "input": "My Solara"}
    for _ in range(chance.randrange(1, 4)):
        if chance.random() < 0.8:
            body[chance.choice(_NUMERIC)] = _number(chance)
        else:
            body[chance.choice(_OTHERS)] = chance.choice(_ODD)
    data = json.dumps(body).encode()
    if chance.random() < 0.05:
        at = chance.randrange(len(data))
        data = (
            data[:at] + chance.randbytes(chance.randrange(1, 4)) + data[at + chance.randrange(4) :]
        )
    return data


def _number(chance: random.Random) -> Any:
    kind = chance.random()
    if kind < 0.5:
        return chance.choice((0, 1, 2, 0.5, 0.01, 0.999, 1.1))
    if kind < 0.7:
        return chance.choice(_NUMBERS)
    if kind < 0.9:
        return chance.choice([1, -1]) * math.exp(chance.uniform(-110, 90))
    return chance.getrandbits(chance.randrange(1, 70))
