"""Whether `--deterministic` keeps its word: the same rows in other orders, with and without the
prefix cache, with other numbers of neighbours, killed (-9) and resumed, and asked online alone and
among others. Their texts must be identical.

    python scripts/same_again.py --model MODEL [--rows 200] [--shuffles 10] [--kills 5] [--tokens
    48] [--plain]

`--plain` leaves `--deterministic` out, and shows what it is for. Seeded; prints a table, and ends
with 1 if one text differs.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PENSTOCK = [sys.executable, "-m", "penstock.cli"]
NEIGHBOURS = (1, 3, 16, 64)
TOGETHER = 16
WORDS = (
    *(
        "river",
        "stone",
        "cloud",
        "market",
        "engine",
        "copper",
        "lantern",
        "bridge",
        "winter",
        "garden",
        "silver",
    ),
    *(
        "paper",
        "music",
        "harbor",
        "window",
        "forest",
        "coffee",
        "table",
        "doctor",
        "letter",
        "planet",
        "signal",
    ),
)
Texts = dict[int, str]


def make_rows(count: int, seed: int) -> list[dict[str, Any]]:
    """Rows of which half share a prefix of about 60 tokens; some are short, some long enough for
    several steps.
    """
    draw = random.Random(seed)

    def words(least: int, most: int) -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(least, most)))

    shared = f"Read these notes, then answer in one sentence. Notes: {words(45, 45)}. Question: "
    kinds: Sequence[Callable[[], str]] = (
        lambda: f"{shared}what about {words(1, 12)}?",
        lambda: f"{shared}who wrote of {words(1, 3)}?",
        lambda: f"What is {draw.randint(10, 99)} plus {draw.randint(10, 99)}?",
        lambda: f"Write a line about {words(1, 40)}.",
        lambda: f"Continue: {words(150, 400)}",
    )
    return [
        {"id": number, "text": draw.choices(kinds, (30, 20, 25, 24, 1))[0]()}
        for number in range(count)
    ]


class Bench:
    """What all runs have in common: the model, its options, and a folder."""

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        self.args = args
        self.folder = folder
        self.draw = random.Random(args.seed)
        self.rows = make_rows(args.rows, args.seed)

    def options(self, cache: bool, neighbours: int) -> list[str]:
        """Of a run or a server. The engine's options cost memory and time only, so a resumed job
        may have others.
        """
        options = {"enable_prefix_caching": cache, "max_num_seqs": neighbours}
        flag = [] if self.args.plain else ["--deterministic"]
        return [*flag, "--engine-kwargs", json.dumps(options)]

    def batch(self, name: str, *, shuffle: bool, cache: bool, kills: int) -> Texts:
        """A job, killed so many times at random moments."""
        rows = self.draw.sample(self.rows, len(self.rows)) if shuffle else self.rows
        source, output = self.folder / f"{name}-in.jsonl", self.folder / f"{name}.jsonl"
        source.write_text("".join(json.dumps(row) + "\n" for row in rows))
        moments = sorted(self.draw.sample(range(1, max(len(rows) - 8, kills + 2)), kills))
        for moment in [*moments, None]:
            command = [
                *PENSTOCK,
                "run",
                str(source),
                "-o",
                str(output),
                "-q",
                "--model",
                self.args.model,
            ]
            command += ["--prompt", "{text}", "--max-tokens", str(self.args.tokens)]
            command += self.options(cache, self.draw.choice(NEIGHBOURS) if shuffle else TOGETHER)
            with subprocess.Popen(command) as job:
                while moment is not None and journaled(output) < moment and job.poll() is None:
                    time.sleep(0.005)
                if moment is not None:
                    job.kill()
            if moment is None and job.returncode:
                raise SystemExit(f"the job ended with {job.returncode}")
        return {
            row["id"]: row["response"] for row in map(json.loads, output.read_text().splitlines())
        }

    def online(self, url: str, together: int) -> Texts:
        """Each row asked of a server, so many at a time, in an order of its own."""

        def ask(row: dict[str, Any]) -> tuple[int, str]:
            body = {
                "model": "model",
                "messages": [{"role": "user", "content": row["text"]}],
                "temperature": 0,
                "max_tokens": self.args.tokens,
            }
            request = urllib.request.Request(
                f"{url}/v1/chat/completions",
                json.dumps(body).encode(),
                {"content-type": "application/json"},
            )
            with urllib.request.urlopen(request, timeout=600) as answer:
                return row["id"], json.load(answer)["choices"][0]["message"]["content"]

        with ThreadPoolExecutor(together) as pool:
            return dict(pool.map(ask, self.draw.sample(self.rows, len(self.rows))))

    @contextmanager
    def server(self, cache: bool) -> Iterator[str]:
        """`penstock serve` of the model; gives its address."""
        command = [
            *PENSTOCK,
            "serve",
            self.args.model,
            "--port",
            "0",
            "--name",
            "model",
            "--log-level",
            "error",
        ]
        with subprocess.Popen(
            [*command, *self.options(cache, 64)], stdout=subprocess.PIPE, text=True
        ) as server:
            assert server.stdout is not None
            try:
                yield next(
                    line for line in server.stdout if line.startswith("Listening on ")
                ).split()[2]
            finally:
                server.terminate()


def journaled(output: Path) -> int:
    """Rows in the journal of a job."""
    return sum(
        path.read_bytes().count(b"\n")
        for path in output.with_name(f"{output.name}.penstock").glob("rows-*")
    )


def main() -> int:
    """Run all of it; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True)
    for name, default in (
        ("rows", 200),
        ("shuffles", 10),
        ("kills", 5),
        ("tokens", 48),
        ("seed", 0),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--plain", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(args, Path(folder))
        begun = time.monotonic()
        whole = bench.batch("whole", shuffle=False, cache=True, kills=0)
        differing = 0

        def tell(what: str, texts: Texts) -> None:
            nonlocal differing
            other = sum(texts.get(number) != text for number, text in whole.items()) + len(
                texts.keys() - whole.keys()
            )
            differing += other
            print(
                f"{what:52} {len(whole) - other:5} of {len(whole)} "
                f" {time.monotonic() - begun:6.0f} s",
                flush=True,
            )

        tell("one batch, as it stands", whole)
        for number in range(args.shuffles):
            for cache in (True, False):
                what = (
                    f"shuffled batch {number}, cache {'on' if cache else 'off'}, {args.kills} kills"
                )
                tell(
                    what,
                    bench.batch(f"{number}-{cache}", shuffle=True, cache=cache, kills=args.kills),
                )
        for cache in (True, False):
            with bench.server(cache) as url:
                for together in (1, TOGETHER):
                    tell(
                        f"online, cache {'on' if cache else 'off'}, {together} at a time",
                        bench.online(url, together),
                    )
        print(f"{differing} texts differ")
        return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
