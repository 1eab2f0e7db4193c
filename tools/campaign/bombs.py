"""Constraints that would take minutes or gigabytes to compile, beside clients that ask for nothing
special.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
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
_IDLE = """
import os
os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
while True:
    sum(range(100_000))
"""
"""A process that computes when nobody else wants to. On a virtual machine it costs others something
all the same.
"""


def campaign(seed: int, deadline: float, folder: Path) -> list[Promise]:
    """All bombs in turn from a process of its own, while another client asks; again until the time
    is over.
    """
    refused = Promise("A constraint that is a bomb is answered, or refused with a 400, within 30 s")
    memory = Promise("The server and its children stay below 4 GiB")
    pace = Promise(
        f"p95 of others' time to first token: at most {PACE} of that beside any process of idle"
        " priority (over the undisturbed one, a phase each)"
    )
    chance = random.Random(seed)
    bodies = []
    for name, bomb in sorted(_bombs().items()):
        path = folder / f"{name}.json"
        path.write_text(json.dumps(chat("Go.", max_tokens=8, **bomb)))
        bodies.append(path)
    with serving() as server:
        _first_tokens(server, 20)
        while time.monotonic() < deadline:
            quiet = _p95(_first_tokens(server, 200))
            with subprocess.Popen([sys.executable, "-c", _IDLE]) as idle:
                beside = _p95(_first_tokens(server, 200))
                idle.kill()
            chance.shuffle(bodies)
            argv = [sys.executable, __file__, f"{server.url}{CHAT}", *map(str, bodies)]
            with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as thrower:
                loud: list[float] = []
                while thrower.poll() is None:
                    loud += _first_tokens(server, 10)
                    used = _memory(server)
                    memory.held() if used < MEMORY else memory.broke(f"{used >> 20} MiB")
                assert thrower.stdout is not None
                for line in thrower.stdout:
                    name, status, took = line.rstrip().rsplit(" ", 2)
                    if status in ("200", "400") and float(took) < 30:
                        refused.held("answered" if status == "200" else "refused")
                    else:
                        refused.broke(f"{name}: {status} after {took} s")
            slow = _p95(loud)
            told = f"{slow / quiet:.2f} (beside an idle process {beside / quiet:.2f})"
            pace.held(told) if slow <= PACE * max(beside, quiet) else pace.broke(told)
    return [refused, memory, pace]


def _throw(url: str, bodies: list[str]) -> None:
    """Send each of these bodies, and print what came of it: its name, the status, and the seconds
    it took.
    """
    for body in bodies:
        content = Path(body).read_bytes()
        time.sleep(0.5)
        began = time.monotonic()
        answer = httpx.post(
            url, content=content, headers={"content-type": "application/json"}, timeout=120
        )
        print(Path(body).stem, answer.status_code, f"{time.monotonic() - began:.2f}", flush=True)


def _first_tokens(server: Server, count: int) -> list[float]:
    """Seconds to the first token of so many requests, one after another."""
    times = []
    with httpx.Client(base_url=server.url, timeout=120) as client:
        for number in range(count):
            began = time.perf_counter()
            with client.stream(
                "POST", CHAT, json=chat(f"Ticket {number}.", max_tokens=4, stream=True)
            ) as answer:
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
    return {
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    }


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _bombs() -> dict[str, dict[str, Any]]:
    deep: dict[str, Any] = {"type": "integer"}
    for _ in range(200):
        deep = {"type": "array", "items": deep}
    parameters = _object({"a": {"type": "string"}})
    tools = [
        {"type": "function", "function": {"name": f"f{n}", "parameters": parameters}}
        for n in range(10_000)
    ]
    many = {"anyOf": [_object({f"a{n}": {"type": "string"}}) for n in range(2000)]}
    return {
        "nested repetition": {"structured_outputs": {"regex": "((a{1,1000}){1,1000}){1,1000}"}},
        "long alternation": {
            "structured_outputs": {"regex": "|".join(f"word{n}[a-z]*{n}" for n in range(10_000))}
        },
        "words in a pattern": _schema(
            _object({"a": {"type": "string", "pattern": "^([a-z]{1,300} ){1,300}$"}})
        ),
        "5,000 properties": _schema(_object({f"p{n}": {"type": "string"} for n in range(5000)})),
        "10,000 tools": {"tools": tools, "tool_choice": "required"},
        "200 arrays deep": _schema(_object({"a": deep})),
        "a million items": _schema(
            _object({"a": {"type": "array", "items": {}, "minItems": 10**6}})
        ),
        "long strings": _schema(
            _object({"a": {"type": "string", "minLength": 10**6, "maxLength": 10**7}})
        ),
        "2,000 alternatives": _schema(many),
        "100,000 choices": _schema({"enum": [f"choice {n}" for n in range(100_000)]}),
    }


if __name__ == "__main__":
    _throw(sys.argv[1], sys.argv[2:])
