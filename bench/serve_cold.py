"""What ten models that nobody calls cost a server: time until it is healthy, and memory, over a
server of none.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import harness
from harness import Bar, Contestant, Series

MODELS = 10
BROKEN = "/no/such/model"


def serve(models: int) -> None:
    """Serve so many models that load on demand, the last of them broken, until stdin closes.

    Writes the time when the imports were done, and the address.
    """
    from penstock.cli import serve as _command  # noqa: F401 - what the command imports is part of every server
    from penstock.llm_config import LLMConfig
    from penstock.serve.api.ingress import OpenAiIngress
    from penstock.serve.http_server import HttpServer, address, listen
    from penstock.serve.models import local as _handles  # noqa: F401
    from penstock.serve.models.local import build_local_handles

    imported = time.monotonic()
    configs = [
        LLMConfig.from_dict(
            {
                "model_loading_config": {
                    "model_id": f"model-{number}",
                    "model_source": BROKEN if number == models - 1 else "demo",
                },
                "deployment_config": {"autoscaling_config": {"min_replicas": 0}},
            }
        )
        for number in range(models)
    ]

    async def main() -> None:
        handles = build_local_handles(configs)
        listening = listen("127.0.0.1", 0)
        server = HttpServer(OpenAiIngress(handles), listening)
        serving = asyncio.create_task(
            server.run(
                handles.values(),
                on_listening=lambda: print(imported, address(listening), flush=True),
            )
        )
        await asyncio.to_thread(sys.stdin.read)
        server.stop()
        await serving

    asyncio.run(main())


@contextlib.contextmanager
def served(models: int) -> Iterator[tuple[float, int]]:
    """Such a server in a process of its own: seconds from its imports until it was healthy, and its
    process id.
    """
    argv = [sys.executable, __file__, "--serve", str(models)]
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            imported, url = process.stdout.readline().split()
            while True:
                with contextlib.suppress(URLError), urlopen(f"{url}/health") as answer:
                    assert answer.status == 200
                    break
            healthy = time.monotonic() - float(imported)
            with urlopen(f"{url}/v1/models") as answer:  # listing them must load none
                assert answer.read().count(b'"state":"cold"') >= models
            yield healthy, process.pid
        finally:
            process.stdin.close()
            assert process.wait(30) == 0


def resident_mb(pid: int) -> float:
    """Resident memory of a process and its children, in MB."""
    children = map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20 + sum(map(resident_mb, children))


def main() -> int:
    """Measure, print, and return the exit code."""
    options: argparse.ArgumentParser = harness.parser(__doc__)
    options.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    args = options.parse_args()
    if args.serve is not None:
        serve(args.serve)
        return 0
    memory: dict[int, list[float]] = {0: [], MODELS: []}

    def contestant(models: int) -> Contestant:
        def measure() -> float:
            with served(models) as (healthy, pid):
                memory[models].append(resident_mb(pid))
                return healthy

        return Contestant(f"{models} models", measure)

    empty, ten = contestant(0), contestant(MODELS)
    times = harness.compare("healthy after the imports", "s", [empty, ten], args.rounds)
    sizes = harness.Comparison(
        "resident memory",
        "MB",
        {
            name: Series(tuple(memory[count][-args.rounds :]))
            for name, count in ((empty.name, 0), (ten.name, MODELS))
        },
    )
    bars = [
        Bar("seconds until a server of ten cold models is healthy", times[ten.name].median, 1.0),
        Bar("MB that ten cold models add", sizes.difference(ten.name, empty.name).median, 40.0),
    ]
    return harness.finish(args, [times, sizes], bars)


if __name__ == "__main__":
    sys.exit(main())
