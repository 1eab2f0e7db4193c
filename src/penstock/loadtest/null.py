"""A server that costs next to nothing: it streams prepared answers, so that a load test of it
shows the load generator's own limit. As a program it prints its port and serves until it is
stopped.
"""

from __future__ import annotations

import asyncio
import json
from functools import lru_cache
from typing import Any

_PIECE = '{"id":"chatcmpl-0","object":"chat.completion.chunk","created":0,"model":"null","choices":'


class NullServer(asyncio.Protocol):
    """Answers each POST with as many tokens as its `max_tokens` asks for, all at once."""

    def __init__(self) -> None:
        self._transport: Any = None
        self._read = bytearray()

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._read += data
        while (head := self._read.find(b"\r\n\r\n")) >= 0:
            lines = bytes(self._read[:head]).lower().split(b"\r\n")
            lengths = [int(line[15:]) for line in lines if line.startswith(b"content-length:")]
            end = head + 4 + sum(lengths)
            if len(self._read) < end:
                return
            body = bytes(self._read[head + 4 : end])
            del self._read[:end]
            self._transport.write(_listed() if lines[0].startswith(b"get") else _answer(body))


def _answer(body: bytes) -> bytes:
    asked = json.loads(body)
    return _prepared(int(asked.get("max_tokens", 16)), bool(asked.get("stream")))


@lru_cache(1024)
def _prepared(tokens: int, stream: bool) -> bytes:
    usage = {"prompt_tokens": 0, "completion_tokens": tokens}
    if not stream:
        message = {"role": "assistant", "content": "a" * tokens}
        choice = {"index": 0, "message": message, "finish_reason": "length"}
        return _whole({"choices": [choice], "usage": usage})
    piece = f'data: {_PIECE}[{{"index":0,"delta":{{"content":"a"}},"finish_reason":null}}]}}\n\n'
    last = f'data: {_PIECE}[{{"index":0,"delta":{{}},"finish_reason":"length"}}],"usage":'
    last += f"{json.dumps(usage)}}}\n\ndata: [DONE]\n\n"
    # A chunk a token, as servers write them.
    chunks = [f"{len(text):x}\r\n{text}\r\n" for text in (*[piece] * tokens, last)]
    head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
    return "".join([head, "transfer-encoding: chunked\r\n\r\n", *chunks, "0\r\n\r\n"]).encode()


def _listed() -> bytes:
    return _whole({"object": "list", "data": [{"id": "null", "object": "model"}]})


def _whole(value: Any) -> bytes:
    body = json.dumps(value)
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
    return f"{head}\r\n{body}".encode()


async def _serve() -> None:
    server = await asyncio.get_running_loop().create_server(NullServer, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve())
