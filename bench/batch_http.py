"""The HTTP processor over a bare aiohttp loop, over the one of ray.data.llm where Ray is installed,
and over distilabel where an interpreter has it.

The endpoint is a process of its own that answers from memory, so that what is measured is the
client. The bare loop is what one would write by hand: as many workers as there may be requests at
once, a session, nothing else: no retries, no limiter, no errors. Ray runs in a process of its own
each time, and its time begins when it is ready.
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
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any

import harness
from harness import Bar, Contestant

BARE, OURS, RAY, DISTILABEL = "aiohttp loop", "penstock", "ray.data.llm", "distilabel"
LATENCY_S = 0.2
SLOW_ROWS = 640
LEAST = {BARE: 0.95, RAY: 2.0, DISTILABEL: 1.0}
"""Rows/s of ours over those of the others, at least."""
ANSWER = json.dumps(
    {
        "id": "x",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "yes " * 8}}],
        "usage": {"prompt_tokens": 24, "completion_tokens": 8, "total_tokens": 32},
    }
)


def payloads(rows: int) -> Iterator[dict[str, Any]]:
    """What is sent: small chats."""
    for number in range(rows):
        yield {
            "model": "m",
            "messages": [{"role": "user", "content": f"row {number}: {'word ' * 20}"}],
        }


# The endpoint
class Endpoint(asyncio.Protocol):
    """Answers every POST with the same JSON: at once, or on the path /slow after `LATENCY_S`."""

    reply = (
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length:"
        f" {len(ANSWER)}\r\n\r\n{ANSWER}".encode()
    )

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._rest = b""

    def data_received(self, data: bytes) -> None:
        """Answer each request that is complete."""
        self._rest += data
        while (end := self._rest.find(b"\r\n\r\n")) >= 0:
            head = self._rest[:end].lower()
            length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0] or 0)
            if len(self._rest) < end + 4 + length:
                return
            self._rest = self._rest[end + 4 + length :]
            if head.startswith(b"post /slow"):
                asyncio.get_running_loop().call_later(LATENCY_S, self._transport.write, self.reply)
            else:
                self._transport.write(self.reply)


async def serve() -> None:
    """Serve on a free port, and print it."""
    server = await asyncio.get_running_loop().create_server(Endpoint, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


@contextlib.contextmanager
def endpoint() -> Iterator[str]:
    """The endpoint's process; gives its URL."""
    with subprocess.Popen(
        [sys.executable, __file__, "--side", "endpoint"], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.terminate()
            process.wait(30)


# The sides; each gives seconds
async def _in_parallel(
    rows: Iterable[Any], workers: int, work: Callable[[Any], Awaitable[Any]]
) -> float:
    remaining = iter(rows)

    async def worker() -> None:
        for row in remaining:
            await work(row)

    began = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(workers)))
    return time.perf_counter() - began


async def bare(url: str, rows: int, concurrency: int) -> float:
    """A loop by hand."""
    import aiohttp

    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:

        async def ask(payload: dict[str, Any]) -> None:
            async with session.post(url, json=payload) as response:
                answer = await response.json()
                assert answer["choices"]

        return await _in_parallel(payloads(rows), concurrency, ask)


async def ours(url: str, rows: int, concurrency: int) -> float:
    """The HTTP processor, its rows read as they come."""
    from penstock.batch import HttpRequestProcessorConfig, build_processor

    processor = build_processor(HttpRequestProcessorConfig(url=url, batch_size=concurrency))
    answered = 0
    began = time.perf_counter()
    async for row in processor({"payload": payload} for payload in payloads(rows)):
        assert row["http_response"]["choices"]
        answered += 1
    seconds = time.perf_counter() - began
    assert answered == rows
    return seconds


def ray_data_llm(url: str, rows: int) -> float:
    """The HTTP processor of ray.data.llm with its defaults, in this process."""
    import ray
    from ray.data.llm import HttpRequestProcessorConfig, build_processor

    ray.init(num_cpus=os.cpu_count(), include_dashboard=False, logging_level="ERROR")
    ray.data.DataContext.get_current().enable_progress_bars = False
    config = HttpRequestProcessorConfig(url=url, concurrency=os.cpu_count() or 1)
    processor = build_processor(config, preprocess=lambda row: {"payload": row["payload"]})
    data = ray.data.from_items([{"payload": payload} for payload in payloads(rows)]).materialize()
    began = time.perf_counter()
    assert processor(data).materialize().count() == rows
    return time.perf_counter() - began


def distilabel(url: str, rows: int, concurrency: int) -> float:
    """A task of distilabel on its own, in batches as large as there may be requests at once."""
    from distilabel.models import OpenAILLM  # type: ignore[import-not-found]
    from distilabel.steps.tasks import TextGeneration  # type: ignore[import-not-found]

    llm = OpenAILLM(model="m", base_url=url, api_key="none")
    task = TextGeneration(llm=llm, input_batch_size=concurrency)
    task.load()
    given = [{"instruction": row["messages"][0]["content"]} for row in payloads(rows)]
    next(task.process(given[:1]))  # a first request imports what others find
    answered = 0
    began = time.perf_counter()
    for start in range(0, rows, concurrency):
        answered += len(next(task.process(given[start : start + concurrency])))
    seconds = time.perf_counter() - began
    assert answered == rows
    return seconds


def elsewhere(side: str, python: str, url: str, rows: int, concurrency: int) -> float:
    """A side in a process of its own, by an interpreter that has what it needs."""
    argv = [python, __file__, "--side", side, "--url", url, "--rows", str(rows)]
    argv += ["--concurrency", str(concurrency)]
    return float(harness.command(argv).output.split()[-1])


def parse() -> argparse.Namespace:
    """The options."""
    options = harness.parser(__doc__)
    options.add_argument(
        "--rows",
        type=int,
        default=20_000,
        help="to the fast endpoint; 0: without (default: %(default)s)",
    )
    options.add_argument(
        "--concurrency", type=int, default=64, help="requests at once (default: %(default)s)"
    )
    options.add_argument("--ray-python", help="an interpreter that has Ray (default: without it)")
    options.add_argument("--distilabel", help="an interpreter that has it (default: without it)")
    options.add_argument("--side", help=argparse.SUPPRESS)
    options.add_argument("--url", help=argparse.SUPPRESS)
    return options.parse_args()


def main() -> int:
    """Measure, print, and return the exit code."""
    args = parse()
    if args.side == "endpoint":
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(serve())
        return 0
    if args.side == RAY:
        print(ray_data_llm(args.url, args.rows))
        return 0
    if args.side == DISTILABEL:
        print(distilabel(args.url, args.rows, args.concurrency))
        return 0

    def rate(side: Any, url: str, rows: int) -> Callable[[], float]:
        return lambda: rows / asyncio.run(side(url, rows, args.concurrency))

    def rate_of(side: str, python: str, url: str, rows: int) -> Callable[[], float]:
        return lambda: rows / elsewhere(side, python, url, rows, args.concurrency)

    with endpoint() as url:
        fast, slow = f"{url}/fast", f"{url}/slow"
        here = {BARE: bare, OURS: ours}
        at_once = [Contestant(name, rate(side, fast, args.rows)) for name, side in here.items()]
        late = [Contestant(name, rate(side, slow, SLOW_ROWS)) for name, side in here.items()]
        if args.ray_python:
            at_once.append(Contestant(RAY, rate_of(RAY, args.ray_python, fast, args.rows)))
        if args.distilabel:
            late.append(
                Contestant(DISTILABEL, rate_of(DISTILABEL, args.distilabel, slow, SLOW_ROWS))
            )
        given = {(args.rows, "at once"): at_once, (SLOW_ROWS, f"after {LATENCY_S} s"): late}
        compared = [
            harness.compare(f"{rows} rows, answered {when}", "rows/s", sides, args.rounds)
            for (rows, when), sides in given.items()
            if rows
        ]
    bars = [
        Bar(f"{one.title}: rows/s over {peer}", one.ratio(OURS, peer).median, least, at_least=True)
        for one in compared
        for peer, least in LEAST.items()
        if peer in one.series
    ]
    return harness.finish(args, compared, bars, packages=["aiohttp", "ray"])


if __name__ == "__main__":
    sys.exit(main())
