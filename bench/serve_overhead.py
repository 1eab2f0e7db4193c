"""What the whole server path costs: streaming chat on a simulated engine at zero latency, over a
minimal ASGI app.

The minimal app is what one would write by hand to stream the same bytes: no checks, no engine, each
event prepared in advance. Both run under the same uvicorn in a process of their own, and the same
load generator reads them over keep-alive connections. Time to the first token and time per token
are those of a single client.

An engine in a process of its own goes on while the server writes. The simulated one lives in the
server's event loop, so it makes `STEPS_PER_TURN` steps whenever the loop lets it; at one, a loop
turn would be the price of every token.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from functools import partial
from statistics import median
from typing import Any

import harness
from harness import Bar, Contestant

STEPS_PER_TURN = 32
MINIMAL, OURS = "minimal ASGI app", "penstock"
BODY = {
    "model": "simulated",
    "messages": [{"role": "user", "content": "hello"}],
    "stream": True,
    "temperature": 0,
}


# The servers, each in a process of its own
def minimal_app(tokens: int) -> Any:
    """An application that answers everything with the same stream."""
    # As long as ours: an id of 41 characters, and a token of one.
    head = (
        'data: {"id":"chatcmpl-'
        + "0" * 32
        + '","object":"chat.completion.chunk","created":1700000000,'
    )
    head += '"model":"simulated","choices":[{"index":0,"delta":'
    role = head + '{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]}\n\n'
    token = (head + '{"content":"a"},"logprobs":null,"finish_reason":null}]}\n\n').encode()
    last = (
        head + '{"content":"a"},"logprobs":null,"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
    ).encode()
    headers = [
        (b"content-type", b"text/event-stream; charset=utf-8"),
        (b"cache-control", b"no-cache"),
        (b"x-accel-buffering", b"no"),
        (b"x-request-id", b"0" * 32),
    ]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        more = True
        body = b""
        while more:
            message = await receive()
            body += message["body"]
            more = message["more_body"]
        json.loads(body)
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": role.encode() + token, "more_body": True})
        for _ in range(tokens - 2):
            await send({"type": "http.response.body", "body": token, "more_body": True})
        await send({"type": "http.response.body", "body": last, "more_body": False})

    return app


def serve(name: str, tokens: int) -> None:
    """Serve one of the contestants on a free port, and print the port."""
    from penstock.garbage import collect_seldom_from_now
    from penstock.serve.http_server import HttpServer, listen

    listening = listen("127.0.0.1", 0)
    print(listening.getsockname()[1], flush=True)
    collect_seldom_from_now()
    if name == MINIMAL:
        import uvicorn

        settings: dict[str, Any] = {
            "lifespan": "off",
            "log_config": None,
            "access_log": False,
            "server_header": False,
        }
        config = uvicorn.Config(minimal_app(tokens), ws="none", **settings)
        asyncio.run(uvicorn.Server(config).serve(sockets=[listening]))
        return

    from penstock.llm_config import LLMConfig
    from penstock.serve.api.ingress import OpenAiIngress
    from penstock.serve.models.local import build_local_handles

    async def run() -> None:
        options = {"output_tokens": tokens, "max_num_seqs": 256, "steps_per_turn": STEPS_PER_TURN}
        loading = {"model_id": "simulated", "model_source": "simulated"}
        given = {
            "model_loading_config": loading,
            "llm_engine": "simulated",
            "engine_kwargs": options,
        }
        handles = build_local_handles([LLMConfig.from_dict(given)])
        await HttpServer(OpenAiIngress(handles), listening).run(handles.values())

    asyncio.run(run())


@contextlib.contextmanager
def server(name: str, tokens: int) -> Iterator[int]:
    """A contestant's process; gives its port."""
    argv = [sys.executable, __file__, "--serve", name, "--tokens", str(tokens)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=os.environ) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.terminate()
            process.wait(30)


# The load generator
class Client(asyncio.Protocol):
    """One connection that asks again as soon as its answer has ended."""

    def __init__(self, requests: int, request: bytes) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.first_token: list[float] = []
        self.per_token: list[float] = []
        self._left = requests
        self._request = request
        self._events = 0
        self._tail = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask for the first time."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._ask()

    def data_received(self, data: bytes) -> None:
        """Count events, of which the second has the first token; the stream's end is the end of the
        chunked body.
        """
        seen = self._tail + data
        before = self._events
        self._events += seen.count(b"data: ") - self._tail.count(b"data: ")
        if before < 2 <= self._events:
            self._first = time.perf_counter()
        if not seen.endswith(b"0\r\n\r\n"):
            self._tail = seen[-5:]  # shorter than what is counted
            return
        now = time.perf_counter()
        self.first_token.append(self._first - self._asked)
        # Without role, first token and [DONE].
        self.per_token.append((now - self._first) / max(self._events - 3, 1))
        self._left -= 1
        if self._left:
            self._ask()
        else:
            self._transport.close()
            self.done.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        """A connection that ends early is a failure."""
        if not self.done.done():
            self.done.set_exception(error or ConnectionError("the server closed the connection"))

    def _ask(self) -> None:
        self._events, self._tail = 0, b""
        self._asked = time.perf_counter()
        self._transport.write(self._request)


async def load(
    port: int, clients: int, requests: int, asked: Mapping[str, Any] = BODY
) -> tuple[float, list[Client]]:
    """Seconds that so many clients take for so many chat requests each, of the body `asked`."""
    body = json.dumps(asked).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\n"
    head += "content-type: application/json\r\n"
    head += f"content-length: {len(body)}"
    request = head.encode() + b"\r\n\r\n" + body
    loop = asyncio.get_running_loop()
    start = time.perf_counter()
    made = [
        (await loop.create_connection(lambda: Client(requests, request), "127.0.0.1", port))[1]
        for _ in range(clients)
    ]
    await asyncio.gather(*(client.done for client in made))
    return time.perf_counter() - start, made


def main() -> int:
    """Measure, print, and return the exit code."""
    options = harness.parser(__doc__)
    options.add_argument(
        "--tokens", type=int, default=64, help="of an answer (default: %(default)s)"
    )
    options.add_argument(
        "--requests", type=int, default=1024, help="of a run (default: %(default)s)"
    )
    options.add_argument(
        "--clients", type=int, nargs="+", default=[1, 8, 64, 256], help="(default: 1 8 64 256)"
    )
    options.add_argument("--serve", choices=[MINIMAL, OURS], help=argparse.SUPPRESS)
    args = options.parse_args()
    if args.serve:
        serve(args.serve, args.tokens)
        return 0

    with contextlib.ExitStack() as stack:
        ports = {name: stack.enter_context(server(name, args.tokens)) for name in (MINIMAL, OURS)}
        comparisons, bars = [], []
        for clients in args.clients:

            def tokens_per_second(name: str, clients: int = clients) -> float:
                requests = max(args.requests // clients, 1)
                seconds, _ = asyncio.run(load(ports[name], clients, requests))
                return float(requests * clients * args.tokens / seconds)

            contestants = [Contestant(name, partial(tokens_per_second, name)) for name in ports]
            compared = harness.compare(f"{clients} clients", "tokens/s", contestants, args.rounds)
            comparisons.append(compared)
            ratio = compared.ratio(MINIMAL, OURS).median
            bars.append(
                Bar(f"{clients} clients, tokens/s of the {MINIMAL} over ours", ratio, 1 / 0.9)
            )

        for title, attribute in (
            ("time to first token", "first_token"),
            ("time per token", "per_token"),
        ):

            def microseconds(name: str, attribute: str = attribute) -> float:
                _, made = asyncio.run(load(ports[name], 1, max(args.requests // 8, 1)))
                return float(median(getattr(made[0], attribute))) * 1e6

            contestants = [Contestant(name, lambda name=name: microseconds(name)) for name in ports]  # type: ignore[misc]
            comparisons.append(harness.compare(title, "µs", contestants, args.rounds))
    return harness.finish(
        args, comparisons, bars, packages=["uvicorn", "starlette", "httptools", "uvloop"]
    )


if __name__ == "__main__":
    sys.exit(main())
