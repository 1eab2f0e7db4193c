"""Penstock and a peer on the same work, in turn, with `penstock bench serve --compare`.

    python bench/peers/compare.py llama_cpp --model SmolLM2.gguf
    python bench/peers/compare.py litellm

A peer's environment is made at first use. The table goes into docs/benchmarks.md.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
import peer_servers  # noqa: E402

import harness  # noqa: E402
import remote_hop  # noqa: E402

PAGE = HERE.parents[1] / "docs" / "benchmarks.md"
_SPEED, _FIRST = "output tokens/s", "time to first token p50, ms"
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
class Case:
    """One piece of work: options of `penstock bench serve`, and what Penstock promises of it: the
    least of `figure` over the peer's, and the most of the time to first token over the peer's.
    """

    name: str
    clients: int
    options: Sequence[str]
    least: float
    most_first: float | None = None
    figure: str = _SPEED


_LENGTHS = ("--input-tokens", "64", "--output-tokens", "64", "--ignore-eos")
_SHARED = ("--workload", "shared-prefix", "--prefixes", "4", "--input-tokens", "2000")
CASES = {
    "llama_cpp": [
        Case("1 client", 1, (*_LENGTHS, "--requests", "10"), 1.0, 1.1),
        Case("8 clients", 8, (*_LENGTHS, "--requests", "40"), 3.0),
        Case("32 clients", 32, (*_LENGTHS, "--requests", "96"), 5.0),
        Case(
            "8 clients, JSON schema",
            8,
            ("--input-tokens", "64", "--output-tokens", "64", "--requests", "40"),
            1.5,
            figure="requests/s",
        ),
        Case(
            "8 clients, 2,000-token prompts with shared prefixes",
            8,
            (*_SHARED, "--output-tokens", "32", "--ignore-eos", "--requests", "24"),
            1.5,
        ),
    ],
    "litellm": [
        Case("1 client", 1, (*_LENGTHS, "--requests", "50"), 1.0, 0.5),
        Case("32 clients", 32, (*_LENGTHS, "--requests", "320"), 4.0),
    ],
}


@contextlib.contextmanager
def contestants(peer: str, case: Case, model: str | None) -> Iterator[tuple[str, str]]:
    """The targets of a comparison: the peer's, and Penstock's."""
    if peer == "llama_cpp":
        assert model is not None
        with peer_servers.llama_cpp(model, case.clients) as url:
            yield url, model
    else:
        with (
            peer_servers.upstream() as upstream,
            peer_servers.litellm(upstream) as url,
            remote_hop.hop(int(upstream.rpartition(":")[2])) as port,
        ):
            yield url, f"http://127.0.0.1:{port}"


def measure(targets: tuple[str, str], case: Case, rounds: int) -> dict[str, Any]:
    """The figures of one comparison: A is the peer, B Penstock."""
    with tempfile.TemporaryDirectory() as folder:
        figures, schema = Path(folder, "figures.json"), Path(folder, "schema.json")
        argv = [harness.PENSTOCK, "bench", "serve", "--compare", *targets, *case.options]
        argv += ["--clients", str(case.clients), "--warmup", str(case.clients)]
        if "schema" in case.name:
            schema.write_text(json.dumps(_TICKET))
            argv += ["--schema", str(schema)]
        subprocess.run([*argv, "--rounds", str(rounds), "--json", str(figures)], check=True)
        found: dict[str, Any] = json.loads(figures.read_text())
    return found


def row(case: Case, found: dict[str, Any]) -> str:
    """A line of the table, and whether its promises hold."""
    speed, first = found["b_over_a"][case.figure], found["b_over_a"][_FIRST]
    met = speed["median"] >= case.least
    bar = f"at least {case.least:g}"
    if case.most_first is not None:
        met = met and first["median"] <= case.most_first
        bar += f", first token at most {case.most_first:g}"
    cost = max(run["generator_cpu"] for side in found["runs"] for run in side)
    cells = [case.name, case.figure, _ratio(speed), _ratio(first), bar, "met" if met else "MISSED"]
    return "| " + " | ".join([*cells, f"{cost:.0%}"]) + " |"


def _ratio(series: dict[str, float]) -> str:
    return f"{series['median']:.2f} ({series['least']:.2f}..{series['greatest']:.2f})"


def write(peer: str, rows: list[str], rounds: int) -> None:
    """Put the table between the peer's marks in the page."""
    machine = ", ".join(f"{key} {value}" for key, value in harness.describe_machine().items())
    text = "\n".join(
        [
            "| case | figure | Penstock over the peer | first token | promised | | generator |",
            "| --- | --- | --- | --- | --- | --- | --- |",
            *rows,
            "",
            f"Measured on {datetime.now(UTC):%Y-%m-%d}, medians of {rounds} rounds; {machine}.",
        ]
    )
    page = PAGE.read_text()
    begin, end = f"<!-- {peer} -->\n", f"<!-- /{peer} -->"
    head, _, rest = page.partition(begin)
    PAGE.write_text(f"{head}{begin}{text}\n{end}{rest.partition(end)[2]}")


def main() -> int:
    """Measure, write the page, and return the exit code."""
    options = harness.parser(__doc__, rounds=3)
    options.add_argument("peer", choices=CASES)
    options.add_argument("--model", help="a GGUF file, for llama_cpp")
    options.add_argument("--cases", nargs="+", help="numbers of cases (default: all)", type=int)
    args = options.parse_args()
    if args.peer == "llama_cpp" and args.model is None:
        options.error("llama_cpp needs --model FILE.gguf")
    cases = CASES[args.peer]
    rows = []
    for case in [cases[n - 1] for n in args.cases] if args.cases else cases:
        with contestants(args.peer, case, args.model) as targets:
            rows.append(row(case, measure(targets, case, args.rounds)))
            print(rows[-1], flush=True)
    if not args.cases:
        write(args.peer, rows, args.rounds)
    return int(args.check and any("MISSED" in line for line in rows))


if __name__ == "__main__":
    sys.exit(main())
