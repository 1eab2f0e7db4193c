"""Clients that leave: before their body is sent, while they wait, in the middle of a stream."""

from __future__ import annotations

import json
import random
import socket
import time
from pathlib import Path

import httpx
from promises import Promise
from server import CHAT, Server, chat, serving

_TOGETHER = 20


def campaign(seed: int, deadline: float, folder: Path) -> list[Promise]:
    """Twenty that leave at a time, and one that stays."""
    others = Promise("While others leave at any moment, a request that stays is answered")
    freed = Promise("Twenty clients that left leave no request behind")
    chance = random.Random(seed)
    with serving("--max-inflight", "64") as server:
        while time.monotonic() < deadline:
            gone = [_leaver(server, chance) for _ in range(_TOGETHER)]
            answer = httpx.post(
                f"{server.url}{CHAT}", json=chat("My Solara 77 arrived broken."), timeout=60
            )
            others.held() if answer.status_code == 200 else others.broke(answer.text[:200])
            for one in gone:
                one.close()
            (
                freed.held()
                if _idle(server)
                else freed.broke(f"{server.busy():g} requests are still there")
            )
    return [others, freed]


def _leaver(server: Server, chance: random.Random) -> socket.socket:
    host, _, port = server.url.removeprefix("http://").rpartition(":")
    body = json.dumps(
        chat("Please help me.", max_tokens=400, stream=chance.random() < 0.7)
    ).encode()
    head = (
        f"POST {CHAT} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\ncontent-length:"
        f" {len(body)}\r\n\r\n"
    )
    data = head.encode() + body
    client = socket.create_connection((host, int(port)))
    if chance.random() < 0.4:
        client.sendall(data[: chance.randrange(len(data))])
    else:
        client.sendall(data)
        client.settimeout(chance.uniform(0.001, 0.05))
        try:
            while client.recv(chance.randrange(1, 4096)) and chance.random() < 0.8:
                pass
        except TimeoutError:
            pass
    if chance.random() < 0.5:
        client.close()
    return client


def _idle(server: Server) -> bool:
    ends = time.monotonic() + 10
    while time.monotonic() < ends:
        if not server.busy():
            return True
        time.sleep(0.05)
    return False
