"""Penstock and a peer on the same work, in turn.

    python bench/peers/compare.py llama_cpp --model SmolLM2.gguf
    python bench/peers/compare.py vllm

A peer's environment is made at first use. Tables and a picture go into docs/benchmarks.md.
`penstock bench serve --compare` asks servers; programs of bench/ measure everything else.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
import harness  # noqa: E402
import peer_page  # noqa: E402
import peer_servers  # noqa: E402
import remote_hop  # noqa: E402
from harness import Bar, Comparison, Series  # noqa: E402

ROOT = HERE.parents[1]
PAGE = ROOT / "docs" / "benchmarks.md"
_SPEED = "output tokens/s"
_TICKET = {
    "type": "object",
    "properties": {
        "product": {"type": "string", "maxLength": 24},
        "kind": {"enum": ["billing", "shipping", "technical"]},
        "urgent": {"type": "boolean"},
    },
    "required": ["product", "kind", "urgent"],
    "additionalProperties": False,
}


@dataclass(frozen=True)
class Load:
    """A load on two servers: options of `penstock bench serve`, and what Penstock promises of it:
    the least of `figure` over the peer's, and the most of the time to first token over the peer's.
    """

    name: str
    clients: int
    options: str
    least: float
    most_first: float | None = None
    figure: str = _SPEED


@dataclass(frozen=True)
class Program:
    """A program of bench/: its command, in which {here} is this Python, {python} the peer's and
    {model} what --model gives, and the options of a run of seconds.
    """

    command: str
    dry: str


@dataclass(frozen=True)
class Peer:
    """What is measured, and the environment of `install.sh`: None where it is Penstock's own."""

    environment: str | None
    cases: Sequence[Load | Program]

    @property
    def needs_model(self) -> bool:
        """Whether it is measured with a model that must be given."""
        commands = [case.command for case in self.cases if isinstance(case, Program)]
        return self.environment == "llama_cpp" or any("{model}" in one for one in commands)


_LENGTHS = "--input-tokens 64 --output-tokens 64 --ignore-eos"
_SHARED = "--workload shared-prefix --prefixes 4 --input-tokens 2000 --output-tokens 32"
_FEW = "--rows 8 --tokens 4"
_RAY = "{here} ray_serve.py --peer-python {python} --sides ray"
_MANY, _ONE = "--pace 0.25 --clients 64 --requests 1024", "--clients 1 --requests 64"
_RAY_DATA = "{here} ray_data.py --peer-python {python} --kinds"
PEERS = {
    "llama_cpp": Peer(
        "llama_cpp",
        [
            Load("1 client", 1, f"{_LENGTHS} --requests 10", 1.0, 1.1),
            Load("8 clients", 8, f"{_LENGTHS} --requests 40", 3.0),
            Load("32 clients", 32, f"{_LENGTHS} --requests 96", 5.0),
            Load(
                "8 clients, JSON schema",
                8,
                "--input-tokens 64 --output-tokens 64 --requests 40",
                1.5,
                figure="requests/s",
            ),
            Load(
                "8 clients, 2,000-token prompts with shared prefixes",
                8,
                f"{_SHARED} --ignore-eos --requests 24",
                1.5,
            ),
        ],
    ),
    "llama_cpp_batch": Peer(
        "llama_cpp",
        [
            Program(
                "{here} batch_openvino.py --models {model} --llama-cpp {python}"
                " --rows 128 --tokens 32",
                _FEW,
            )
        ],
    ),
    "litellm": Peer(
        "litellm",
        [
            Load("1 client", 1, f"{_LENGTHS} --requests 50", 1.0, 0.5),
            Load("32 clients", 32, f"{_LENGTHS} --requests 320", 4.0),
        ],
    ),
    "openvino": Peer(
        None,
        [
            Program("{here} batch_openvino.py --models demo", _FEW),
            Program("{here} batch_openvino.py --models 27M --rows 1024", _FEW),
            Program("{here} batch_openvino.py --models {model} --rows 128 --tokens 32", _FEW),
            Program("{here} serve_openvino.py {model}", "--requests 2 --tokens 4"),
        ],
    ),
    "vllm": Peer(
        "vllm",
        [
            Program(
                "{python} vllm_front.py --only streaming --clients 1 64",
                "--requests 1 --tokens 4 --clients 2",
            ),
            Program("{python} vllm_front.py --only run-batch", "--rows 8 --batch-tokens 4"),
            Program("{python} vllm_front.py --only batch", "--rows 8 --batch-tokens 4"),
        ],
    ),
    "ray_serve": Peer(
        "ray",
        [  # each cluster that is there costs the others some of the machine
            Program(f"{_RAY} {peer} {load}", "--clients 1 --requests 4 --tokens 4")
            for peer in ("default", "fastest")
            for load in (_MANY, _ONE)
        ],
    ),
    "ray_data": Peer(
        "ray",
        [
            Program(f"{_RAY_DATA} http", "--rows 128"),
            Program(f"{_RAY_DATA} deployment", "--rows 128"),
            Program(f"{_RAY_DATA} vllm --rows 8192", "--rows 256"),
        ],
    ),
    "sentence_transformers": Peer(
        "sentence_transformers", [Program("{python} -W ignore embed.py {model}", "--rows 64")]
    ),
    "aiohttp": Peer(None, [Program("{here} batch_http.py", "--rows 200")]),
    "distilabel": Peer(
        "distilabel",
        [Program("{here} batch_http.py --rows 0 --distilabel {python}", "")],
    ),
}


@contextlib.contextmanager
def contestants(peer: str, load: Load, model: str) -> Iterator[tuple[str, str]]:
    """The targets of a comparison: the peer's, and Penstock's."""
    if peer == "llama_cpp":
        with peer_servers.llama_cpp(model, load.clients) as url:
            yield url, model
    else:
        with (
            peer_servers.upstream() as upstream,
            peer_servers.litellm(upstream) as url,
            remote_hop.hop(int(upstream.rpartition(":")[2])) as port,
        ):
            yield url, f"http://127.0.0.1:{port}"


def of_load(peer: str, load: Load, args: argparse.Namespace) -> tuple[list[Comparison], list[Bar]]:
    """What `penstock bench serve --compare` found: A is the peer, B Penstock."""
    with contestants(peer, load, args.model) as targets, tempfile.TemporaryDirectory() as folder:
        figures, schema = Path(folder, "figures.json"), Path(folder, "schema.json")
        argv = [harness.PENSTOCK, "bench", "serve", "--compare", *targets, *load.options.split()]
        argv += ["--clients", str(load.clients), "--warmup", str(load.clients)]
        if args.dry:
            argv += ["--requests", str(load.clients)]
        if "schema" in load.name:
            schema.write_text(json.dumps(_TICKET))
            argv += ["--schema", str(schema)]
        subprocess.run([*argv, "--rounds", str(args.rounds), "--json", str(figures)], check=True)
        found = json.loads(figures.read_text())
    return compared(peer, load, found)


def compared(peer: str, load: Load, found: dict[str, Any]) -> tuple[list[Comparison], list[Bar]]:
    """The figures of `penstock bench serve --compare` as comparisons and promises."""
    sides = dict(zip((peer, "penstock"), found["runs"], strict=True))

    def series(figure: Callable[[dict[str, Any]], float]) -> dict[str, Series]:
        return {name: Series(tuple(map(figure, runs))) for name, runs in sides.items()}

    cost = max(run["generator_cpu"] for runs in sides.values() for run in runs)
    speed_key = "requests_per_s" if load.figure == "requests/s" else "output_tokens_per_s"
    title = f"{load.name} (load generator: {cost:.0%} of a core)"
    speed = Comparison(title, load.figure.removeprefix("output "), series(itemgetter(speed_key)))
    first = Comparison(
        f"{load.name}: time to first token", "ms", series(lambda run: float(run["ttft_ms"]["p50"]))
    )
    ratio = speed.ratio("penstock", peer).median
    bars = [Bar(f"{load.name}: {load.figure}", ratio, load.least, at_least=True)]
    if load.most_first is not None:
        ratio = first.ratio("penstock", peer).median
        bars.append(Bar(f"{load.name}: time to first token", ratio, load.most_first))
    return [speed, first], bars


def of_program(
    peer: Peer, program: Program, args: argparse.Namespace
) -> tuple[list[Comparison], list[Bar]]:
    """What a program found."""
    python = peer_servers.interpreter(peer.environment) if peer.environment else ""
    with tempfile.TemporaryDirectory() as folder:
        figures = Path(folder, "figures.json")
        words = [
            word.format(here=sys.executable, python=python, model=args.model)
            for word in shlex.split(program.command)
        ]
        words += shlex.split(program.dry) if args.dry else []
        words += ["--rounds", str(args.rounds), "--json", str(figures)]
        paths = [str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]
        env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
        subprocess.run(words, check=True, cwd=HERE.parent, env=env)
        return harness.recorded(figures)


def main() -> int:
    """Measure, write the page, and return the exit code."""
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument("peer", choices=PEERS)
    options.add_argument("--model", help="a GGUF file; for sentence_transformers a directory")
    options.add_argument("--rounds", type=int, default=3, help="(default: %(default)s)")
    options.add_argument("--cases", nargs="+", help="numbers of cases (default: all)", type=int)
    options.add_argument("--dry", action="store_true", help="one round of seconds, nothing kept")
    options.add_argument("--check", action="store_true", help="exit with 1 if a bar is missed")
    args = options.parse_args()
    peer = PEERS[args.peer]
    if peer.needs_model and not args.model:
        options.error(f"{args.peer} needs --model")
    if args.model and Path(args.model).exists():
        args.model = str(Path(args.model).resolve())  # programs run in a folder of their own
    if args.dry:
        args.rounds = 1
    comparisons: list[Comparison] = []
    bars: list[Bar] = []
    for number in args.cases or range(1, len(peer.cases) + 1):
        case = peer.cases[number - 1]
        if isinstance(case, Load):
            found = of_load(args.peer, case, args)
        else:
            found = of_program(peer, case, args)
        comparisons += found[0]
        bars += found[1]
        print(peer_page.table(*found), end="\n\n", flush=True)
    if not args.cases and not args.dry:
        machine = harness.describe_machine(["openvino-genai", "aiohttp"])
        if peer.environment:
            machine |= peer_servers.versions(peer.environment)
        peer_page.write(PAGE, args.peer, comparisons, bars, args.rounds, machine)
    return int(args.check and not all(bar.met for bar in bars))


if __name__ == "__main__":
    sys.exit(main())
