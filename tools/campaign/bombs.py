"""Constraints that would take minutes or gigabytes to compile, beside clients that ask for nothing special."""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path
from statistics import quantiles
from typing import Any

import httpx
import psutil
from promises import Promise
from server import CHAT, Server, chat, serving

PACE = 1.3
MEMORY = 4 << 30


def campaign(seed: int, deadline: float, folder: Path) -> list[Promise]:
    """Each bomb in turn, until the time is over."""
    refused = Promise("A constraint that is a bomb is answered, or refused with a 400, within 30 s")
    memory = Promise("The server and its children stay below 4 GiB")
    pace = Promise(f"p95 of others' time to first token stays within {PACE} of the undisturbed one (by phase)")
    chance = random.Random(seed)
    with serving() as server:
        while time.monotonic() < deadline:
            quiet = _first_tokens(server, 60)
            bombs = sorted(_bombs())
            chance.shuffle(bombs)
            thread = threading.Thread(target=_throw, args=(server, bombs, refused, memory))
            thread.start()
            loud = []
            while thread.is_alive():
                loud += _first_tokens(server, 10)
            thread.join()
            ratio = _p95(loud) / _p95(quiet)
            pace.held(f"{ratio:.2f}") if ratio <= PACE else pace.broke(f"{ratio:.2f}")
    return [refused, memory, pace]


def _throw(server: Server, names: list[str], refused: Promise, memory: Promise) -> None:
    bombs = _bombs()
    for name in names:
        began = time.monotonic()
        try:
            answer = httpx.post(f"{server.url}{CHAT}", json=chat("Go.", max_tokens=8, **bombs[name]), timeout=120)
        except httpx.HTTPError as error:
            refused.broke(f"{name}: {type(error).__name__}")
            continue
        took = time.monotonic() - began
        if answer.status_code in (200, 400) and took < 30:
            refused.held("answered" if answer.status_code == 200 else "refused")
        else:
            refused.broke(f"{name}: {answer.status_code} after {took:.0f} s")
        used = _memory(server)
        memory.held() if used < MEMORY else memory.broke(f"{name}: {used >> 20} MiB")


def _first_tokens(server: Server, count: int) -> list[float]:
    """Seconds to the first token of so many requests, one after another."""
    times = []
    with httpx.Client(base_url=server.url, timeout=120) as client:
        for number in range(count):
            began = time.perf_counter()
            with client.stream("POST", CHAT, json=chat(f"Ticket {number}.", max_tokens=4, stream=True)) as answer:
                for part, _ in enumerate(answer.iter_bytes()):
                    if not part:
                        times.append(time.perf_counter() - began)
    return times


def _p95(times: list[float]) -> float:
    return quantiles(times, n=20)[-1]


def _memory(server: Server) -> int:
    parent = psutil.Process(server.process.pid)
    total = 0
    for process in (parent, *parent.children(recursive=True)):
        try:
            total += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total


def _schema(schema: dict[str, Any]) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _bombs() -> dict[str, dict[str, Any]]:
    deep: dict[str, Any] = {"type": "integer"}
    for _ in range(200):
        deep = {"type": "array", "items": deep}
    parameters = _object({"a": {"type": "string"}})
    tools = [{"type": "function", "function": {"name": f"f{n}", "parameters": parameters}} for n in range(10_000)]
    many = {"anyOf": [_object({f"a{n}": {"type": "string"}}) for n in range(2000)]}
    return {
        "nested repetition": {"guided_regex": "((a{1,1000}){1,1000}){1,1000}"},
        "long alternation": {"guided_regex": "|".join(f"word{n}[a-z]*{n}" for n in range(20_000))},
        "words in a pattern": _schema(_object({"a": {"type": "string", "pattern": "^([a-z]{1,300} ){1,300}$"}})),
        "5,000 properties": _schema(_object({f"p{n}": {"type": "string"} for n in range(5000)})),
        "10,000 tools": {"tools": tools, "tool_choice": "required"},
        "200 arrays deep": _schema(_object({"a": deep})),
        "a million items": _schema(_object({"a": {"type": "array", "items": {}, "minItems": 10**6}})),
        "long strings": _schema(_object({"a": {"type": "string", "minLength": 10**6, "maxLength": 10**7}})),
        "2,000 alternatives": _schema(many),
        "100,000 choices": _schema({"enum": [f"choice {n}" for n in range(100_000)]}),
    }
