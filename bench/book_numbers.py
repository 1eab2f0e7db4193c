"""Runs the commands of docs/numbers.md one after another, and writes what they gave into its table.

    python bench/book_numbers.py --only batch-demo,import
    python bench/book_numbers.py --dry-run

Each row says when and where it was measured, so rows that were not run stay as they are. The
picture in the README is drawn from the table. `PYTHON` in a command is the interpreter of a peer:
`bench/peers/install.sh` makes its environment.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "peers"))
import harness  # noqa: E402
import peer_servers  # noqa: E402
from harness import Bar, Comparison, Series  # noqa: E402

ROOT = HERE.parent
PAGE = ROOT / "docs" / "numbers.md"
PICTURE = ROOT / "docs" / "images" / "numbers.svg"
BEGIN, END = "<!-- numbers: by bench/book_numbers.py -->\n", "<!-- end of numbers -->"
HEAD = "| what | result | measured | command |\n| --- | --- | --- | --- |\n"
TIMES = re.compile(r"([\d.]+) ×")


@dataclass(frozen=True)
class Found:
    """What a command gave: its comparisons by title, its bars, and what it printed."""

    comparisons: Mapping[str, Comparison]
    bars: Sequence[Bar]
    output: str


Figure = Callable[[Found], str]


def times(title: str, ours: str, base: str) -> Figure:
    """The ratio of two sides of a comparison, with its whole spread."""
    return lambda found: _spread(found.comparisons[title].ratio(ours, base), " ×")


def more(title: str, ours: str, base: str) -> Figure:
    """The difference of two sides, in the comparison's unit."""

    def figure(found: Found) -> str:
        one = found.comparisons[title]
        return _spread(one.difference(ours, base), f" {one.unit}")

    return figure


def median(title: str, side: str) -> Figure:
    """What one side has, in the comparison's unit."""

    def figure(found: Found) -> str:
        one = found.comparisons[title]
        return _spread(one[side], f" {one.unit}")

    return figure


def bar(beginning: str) -> Figure:
    """The value of the bar whose text begins so."""

    def figure(found: Found) -> str:
        (one,) = (one for one in found.bars if one.text.startswith(beginning))
        return f"{one.value:.4g}"

    return figure


def printed(pattern: str) -> Figure:
    """What it printed, where it is no program of bench/."""

    def figure(found: Found) -> str:
        said = re.search(pattern, found.output)
        if said is None:
            raise SystemExit(f"it did not print {pattern!r}:\n{found.output}")
        return said[1]

    return figure


@dataclass(frozen=True)
class Number:
    """A row of the table: `shown` has a place for each figure. `environment` is the one of
    `install.sh` whose interpreter is `PYTHON`, or `python` itself where `inside` is set. `drawn`
    is a line of the picture, and which of the figures it shows.
    """

    what: str
    command: str
    shown: str
    figures: Sequence[Figure]
    environment: str | None = None
    inside: bool = False
    drawn: tuple[str, int] | None = None

    def argv(self, interpreter: Callable[[str], str]) -> list[str]:
        """The command as it is run."""
        python = interpreter(self.environment) if self.environment else sys.executable
        here = python if self.inside else sys.executable
        words = {"python": here, "PYTHON": python, "penstock": harness.PENSTOCK}
        return [words.get(word, word) for word in shlex.split(self.command)]


_BATCH = "python bench/batch_openvino.py --models"
_RAY = "python bench/ray_serve.py --peer-python PYTHON --sides ray default"
_DEFAULT = "Ray Serve LLM, default"
NUMBERS = {
    "batch-demo": Number(
        "a batch job (journal, typed output file) over a bare OpenVINO GenAI loop, demo model,"
        " 4,096 rows, 16 / 64 new tokens",
        f"{_BATCH} demo",
        "{} / {} its tokens/s",
        [times(f"demo, 4096 rows, {n} new tokens", "penstock", "bare") for n in (16, 64)],
        drawn=("a batch job over the bare OpenVINO loop, demo model", 0),
    ),
    "batch-27m": Number(
        "the same with a 27-million-parameter model, 16 / 64 new tokens",
        f"{_BATCH} 27M",
        "{} / {} its tokens/s",
        [times(f"27M, 4096 rows, {n} new tokens", "penstock", "bare") for n in (16, 64)],
    ),
    "import": Number(
        "`import penstock` over the bare interpreter",
        "python bench/import_time.py",
        "{} more, {} third-party modules",
        [more("import", "import penstock", "pass"), bar("third-party modules")],
    ),
    "job-start": Number(
        "a 100-row job from process start to exit over `import pyarrow.parquet` alone (simulated"
        " engine)",
        "python bench/job_start.py",
        "{}",
        [times("from process start to exit", "penstock run", "import pyarrow.parquet")],
    ),
    "job-memory": Number(
        "peak memory of 1,000,000 rows over 100,000 rows (simulated engine)",
        "python bench/job_memory.py",
        "{}",
        [times("peak memory", "1,000,000 rows", "100,000 rows")],
    ),
    "serve-overhead": Number(
        "streaming chat, simulated engine at zero latency, over a hand-written ASGI app that"
        " streams the same bytes, 1 / 8 / 64 / 256 clients",
        "python bench/serve_overhead.py --rounds 5",
        "{} / {} / {} / {} its tokens/s",
        [times(f"{n} clients", "penstock", "minimal ASGI app") for n in (1, 8, 64, 256)],
    ),
    "serve-cold": Number(
        "ten models that nobody has called over a server of none",
        "python bench/serve_cold.py",
        "{} more; healthy {} after the imports",
        [
            more("resident memory", "10 models", "0 models"),
            median("healthy after the imports", "10 models"),
        ],
    ),
    "http": Number(
        "the HTTP processor, 20,000 rows to a loopback endpoint, over a bare aiohttp loop / over"
        " `ray.data.llm`'s",
        "python bench/batch_http.py --ray-python PYTHON",
        "{} / {} its rows/s",
        [
            times("20000 rows, answered at once", "penstock", peer)
            for peer in ("aiohttp loop", "ray.data.llm")
        ],
        environment="ray",
        drawn=("ray.data.llm's HTTP processor, 20,000 rows", 1),
    ),
    "shared-engine": Number(
        "two processors in a row on one engine over two engines, 27 M parameters: rows/s of an"
        " engine / memory",
        "python bench/shared_engine.py --rounds 2 --rows 150",
        "{} / {}",
        [times(what, "one engine", "two engines") for what in ("rows/s of an engine", "memory")],
    ),
    "vllm-serve": Number(
        "vLLM (CPU) behind Penstock over vLLM's own server, streaming chat: 64 clients / time to"
        " first token of one",
        "python bench/vllm_front.py --only streaming --clients 64",
        "{} its tokens/s / {} its time",
        [times(one, "penstock", "vllm") for one in ("64 clients", "time to first token, 1 client")],
        environment="vllm",
        inside=True,
        drawn=("vLLM (CPU) behind Penstock over its own server, 64 clients", 0),
    ),
    "vllm-batch": Number(
        "a batch job on vLLM (CPU), journal and output file, over `LLM.generate`, 4,096 rows of 16"
        " new tokens",
        "python bench/vllm_front.py --only batch",
        "{} its tokens/s",
        [times("4096 rows, 16 new tokens", "penstock", "LLM.generate")],
        environment="vllm",
        inside=True,
    ),
    "ray-serve": Number(
        "streaming chat on Ray, simulated engine of 0.25 ms a token, 64 clients, over Ray Serve"
        " LLM's default settings",
        f"{_RAY} --pace 0.25 --clients 64 --rounds 2 --requests 1024",
        "{} its tokens/s",
        [times("64 clients", "Ray runtime", _DEFAULT)],
        environment="ray",
        drawn=("Ray Serve LLM (default settings), 64 clients, simulated engine", 0),
    ),
    "ray-serve-first": Number(
        "the same, time to first token of one client, 1 ms a token",
        f"{_RAY} --clients 1 --rounds 2 --requests 64",
        "{} its time",
        [times("time to first token, 1 client", "Ray runtime", _DEFAULT)],
        environment="ray",
    ),
    "ray-local": Number(
        "streaming chat on Ray, 64 clients, over Penstock's local runtime: through the ingress /"
        " with the replica as the front",
        "python bench/ray_serve.py --sides local ray front --clients 64 --rounds 3 --requests 256",
        "{} / {} its tokens/s",
        [
            times("64 clients", side, "local runtime")
            for side in ("Ray runtime", "Ray runtime, replica as front")
        ],
        environment="ray",
        inside=True,
    ),
    "kv-routing": Number(
        "two vLLM replicas, prompt tokens found cached: prefix-aware / KV-aware routing over round"
        " robin",
        "python bench/kv_routing.py --rounds 2",
        "{} / {}",
        [
            times("prompt tokens found in a cache", policy, "round_robin")
            for policy in ("prefix_aware", "kv_aware")
        ],
        environment="vllm",
        inside=True,
    ),
    "demo": Number(
        "the demo model, exact match on unseen tickets and product names",
        "penstock demo",
        "{}",
        [printed(r"gold labels: (\d+ of \d+)")],
    ),
}


def measured(number: Number) -> str:
    """Run its command; gives the row of the table."""
    with tempfile.TemporaryDirectory() as folder:
        figures = Path(folder, "figures.json")
        argv = number.argv(peer_servers.interpreter)
        program = number.command.startswith("python ")
        paths = [str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]
        done = subprocess.run(
            [*argv, "--json", str(figures)] if program else argv,
            check=True,
            cwd=ROOT if program else folder,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
            stdout=subprocess.PIPE,
            text=True,
        )
        print(done.stdout, flush=True)
        comparisons, bars = harness.recorded(figures) if program else ([], [])
    found = Found({one.title: one for one in comparisons}, bars, done.stdout)
    return row(number, number.shown.format(*(figure(found) for figure in number.figures)), note())


def note() -> str:
    """When and where."""
    machine = harness.describe_machine()
    return f"{datetime.now(UTC):%Y-%m-%d}, {machine['cpu']}, {machine['cores']} cores"


def row(number: Number, result: str, when: str) -> str:
    """A line of the table."""
    return f"| {number.what} | {result} | {when} | `{number.command}` |"


def rows(page: str) -> dict[str, str]:
    """The lines of the table on a page, by what they are about."""
    table = page.partition(BEGIN)[2].partition(END)[0].removeprefix(HEAD)
    return {line.split(" | ")[0].removeprefix("| "): line for line in table.splitlines()}


def written(page: str, new: Mapping[str, str]) -> str:
    """The page with new lines in the place of theirs; the others stay."""
    kept = rows(page)
    lines = [new.get(one.what) or kept.get(one.what) for one in NUMBERS.values()]
    table = HEAD + "".join(f"{line}\n" for line in lines if line)
    return f"{page.partition(BEGIN)[0]}{BEGIN}{table}{END}{page.partition(END)[2]}"


def picture(page: str) -> str:
    """The figures that are drawn, as SVG: bars, with the peer at 1."""
    table = rows(page)
    values = [
        (drawn[0], float(TIMES.findall(table[one.what].split(" | ")[1])[drawn[1]]))
        for one in NUMBERS.values()
        if (drawn := one.drawn) and one.what in table
    ]
    values.sort(key=lambda pair: pair[1])
    step = 600 / max([1.0, *(value for _, value in values)])
    title = f"{', '.join(f'{value:g}' for _, value in values)} times the peer"
    height = 44 + 52 * len(values) + 16
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 700 {height}" role="img"'
        f' aria-label="{title}" font-family="system-ui,sans-serif" font-size="14" fill="#1c2b2d">',
        f"<title>{title}</title>",
        f'<rect width="700" height="{height}" rx="8" fill="#fff"/>',
        '<text x="20" y="28" font-weight="600">tokens/s or rows/s over the peer\'s (1 is equal)'
        "</text>",
    ]
    for place, (label, value) in enumerate(values):
        y, width = 44 + 52 * place, step * value
        parts += [
            f'<text x="20" y="{y + 12}" font-size="12" fill="#4a5b5e">{escape(label)}</text>',
            f'<rect x="20" y="{y + 18}" width="{width:.0f}" height="20" rx="3" fill="#0b7a75"/>',
            f'<text x="{28 + width:.0f}" y="{y + 34}" font-weight="600">{value:g} ×</text>',
        ]
    parts.append(
        f'<path d="M{20 + step:.0f} 44V{height - 12}" stroke="#b3261e" stroke-width="1.5"'
        ' stroke-dasharray="3 3"/>'
    )
    return "\n".join([*parts, "</svg>", ""])


def _spread(series: Series, unit: str) -> str:
    middle, *ends = (
        f"{value:.3g}" for value in (series.median, min(series.samples), max(series.samples))
    )
    return f"{middle}{unit} ({'..'.join(ends)})" if len(series.samples) > 1 else f"{middle}{unit}"


def main() -> int:
    """Run what is asked for, and write each row when it is there."""
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument(
        "--only", metavar="NAME,…", help=f"these rows (default: all): {', '.join(NUMBERS)}"
    )
    options.add_argument("--dry-run", action="store_true", help="print the commands")
    args = options.parse_args()
    names = args.only.split(",") if args.only else list(NUMBERS)
    if unknown := [name for name in names if name not in NUMBERS]:
        options.error(f"--only: there is no {unknown[0]!r}, only {', '.join(NUMBERS)}")
    failed = []
    for name in names:
        number = NUMBERS[name]
        print(f"=== {name}: {number.command}", flush=True)
        if args.dry_run:
            continue
        try:
            line = measured(number)
        except (subprocess.CalledProcessError, KeyError) as error:  # KeyError: another title
            print(f"{name} failed: {error!r}", file=sys.stderr, flush=True)
            failed.append(name)
            continue
        page = written(PAGE.read_text(encoding="utf-8"), {number.what: line})
        PAGE.write_text(page, encoding="utf-8")
        PICTURE.write_text(picture(page), encoding="utf-8")
        print(line, end="\n\n", flush=True)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
