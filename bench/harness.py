"""The harness of all comparisons: contestants take turns, A B A B …, so that a machine's drift hits
them all.

A benchmark is a script that builds comparisons and bars and hands them to `finish`:

    args = harness.parser(__doc__).parse_args() startup = harness.compare("start-up", "s",
    [Contestant("bare", …), Contestant("ours", …)], args.rounds) sys.exit(harness.finish(args,
    [startup], [Bar("…", startup["ours"].median, limit)]))

Medians and paired ratios are shown with their whole spread: no round is dropped. Only the standard
library is needed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from statistics import median

PENSTOCK = str(Path(sys.executable).with_name("penstock"))
"""The command line of the environment that runs the benchmark."""


@dataclass(frozen=True)
class Contestant:
    """One side of a comparison: each call of `measure` is a whole fresh run and returns its
    number.
    """

    name: str
    measure: Callable[[], float]


@dataclass(frozen=True)
class Series:
    """What one contestant, or one pairing of two, gave in each round."""

    samples: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle sample."""
        return median(self.samples)

    def __str__(self) -> str:
        return f"{self.median:.4g} ({min(self.samples):.4g}..{max(self.samples):.4g})"


@dataclass(frozen=True)
class Comparison:
    """The rounds of some contestants, by name, in the order they took turns."""

    title: str
    unit: str
    series: Mapping[str, Series]

    def __getitem__(self, name: str) -> Series:
        return self.series[name]

    def ratio(self, name: str, base: str) -> Series:
        """`name` over `base`, paired round by round: neighbours in time share the machine's
        mood.
        """
        return self._paired(name, base, lambda ours, theirs: ours / theirs)

    def difference(self, name: str, base: str) -> Series:
        """`name` minus `base`, paired round by round."""
        return self._paired(name, base, lambda ours, theirs: ours - theirs)

    def _paired(self, name: str, base: str, combine: Callable[[float, float], float]) -> Series:
        return Series(tuple(map(combine, self[name].samples, self[base].samples)))


@dataclass(frozen=True)
class Bar:
    """A promise: `value` is at most `limit`, or with `at_least` not below it."""

    text: str
    value: float
    limit: float
    at_least: bool = False

    @property
    def met(self) -> bool:
        """Whether the promise holds."""
        return self.value >= self.limit if self.at_least else self.value <= self.limit


@dataclass(frozen=True)
class Usage:
    """What a finished command cost.

    `peak_mb` is the largest resident size of any one process: the command, or a child that it
    waited for. Linux counts the fork as well, so it is never below the size of this process, some
    20 MB.
    """

    seconds: float
    peak_mb: float
    output: str


def compare(
    title: str, unit: str, contestants: Sequence[Contestant], rounds: int, *, warmups: int = 1
) -> Comparison:
    """Let the contestants take turns for so many rounds, after warm-up rounds that fill the file
    cache.
    """
    samples: dict[str, list[float]] = {contestant.name: [] for contestant in contestants}
    for round_number in range(-warmups, rounds):
        for contestant in contestants:
            value = contestant.measure()
            if round_number >= 0:
                samples[contestant.name].append(value)
                _say(
                    f"{title}: round {round_number + 1}/{rounds}, {contestant.name}: {value:.4g}"
                    f" {unit}"
                )
    return Comparison(
        title, unit, {name: Series(tuple(values)) for name, values in samples.items()}
    )


def command(
    argv: Sequence[str | os.PathLike[str]],
    *,
    env: Mapping[str, str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
) -> Usage:
    """Run a command to its end in a fresh process. Raises RuntimeError with its last words if it
    fails.
    """
    environment = {**os.environ, **(env or {})}
    # Installed packages are compiled: measure them so.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        start = time.perf_counter()
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=environment, cwd=cwd
        )
        # wait4 alone tells what this one child used; Popen is told that its child is gone.
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        if process.returncode != 0:
            last_words = err.read().decode(errors="replace").strip()[-2000:]
            raise RuntimeError(f"{argv[0]} ended with {process.returncode}:\n{last_words}")
        return Usage(seconds, usage.ru_maxrss / 1024, out.read().decode(errors="replace"))


def family(pid: int) -> list[int]:
    """A process, and all that it and those started, parents first."""
    pids = [pid]
    for one in pids:  # it grows
        for task in Path(f"/proc/{one}/task").iterdir():
            pids += map(int, (task / "children").read_text().split())
    return pids


def processor_seconds(pid: int) -> float:
    """Processor time that a process has used, which other work on the machine hardly changes."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def parser(description: str | None, *, rounds: int = 5) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    options = argparse.ArgumentParser(description=(description or "").strip().partition("\n")[0])
    options.add_argument(
        "--rounds", type=int, default=rounds, help="measured rounds (default: %(default)s)"
    )
    options.add_argument("--json", type=Path, metavar="FILE", help="write every sample to FILE")
    options.add_argument("--check", action="store_true", help="exit with 1 if a bar is missed")
    return options


def finish(
    args: argparse.Namespace,
    comparisons: Sequence[Comparison],
    bars: Sequence[Bar],
    *,
    packages: Iterable[str] = (),
) -> int:
    """Print the tables, write the JSON file if asked, and return the exit code."""
    machine = describe_machine(packages)
    for comparison in comparisons:
        print(_table(comparison), end="\n\n")
    for bar in bars:
        print(
            f"{'met   ' if bar.met else 'MISSED'}  {bar.text}: {bar.value:.4g} ({_rule(bar)}"
            f" {bar.limit:.4g})"
        )
    print("\n" + ", ".join(f"{name} {value}" for name, value in machine.items()))
    if args.json:
        record = {
            "machine": machine,
            "comparisons": [
                {
                    "title": comparison.title,
                    "unit": comparison.unit,
                    "samples": {name: series.samples for name, series in comparison.series.items()},
                }
                for comparison in comparisons
            ],
            "bars": [asdict(bar) | {"met": bar.met} for bar in bars],
        }
        args.json.write_text(json.dumps(record, indent=2) + "\n")
    return 1 if args.check and not all(bar.met for bar in bars) else 0


def recorded(file: Path) -> tuple[list[Comparison], list[Bar]]:
    """What `finish` wrote with `--json`."""
    record = json.loads(file.read_text())
    comparisons = [
        Comparison(
            one["title"],
            one["unit"],
            {name: Series(tuple(samples)) for name, samples in one["samples"].items()},
        )
        for one in record["comparisons"]
    ]
    bars = [
        Bar(one["text"], one["value"], one["limit"], at_least=one["at_least"])
        for one in record["bars"]
    ]
    return comparisons, bars


def describe_machine(packages: Iterable[str] = ()) -> dict[str, str]:
    """The machine, and the versions of Penstock and of the packages named, as far as they are
    installed.
    """
    machine = {
        "cpu": _field("/proc/cpuinfo", "model name") or platform.processor() or platform.machine(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{int(_field('/proc/meminfo', 'MemTotal').split()[0]) / 2**20:.0f} GiB",
        "python": platform.python_version(),
    }
    for package in ("penstock", *packages):
        try:
            machine[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return machine


def _rule(bar: Bar) -> str:
    return "at least" if bar.at_least else "at most"


def _table(comparison: Comparison) -> str:
    base = next(iter(comparison.series))
    header = (
        f"{comparison.title} ({comparison.unit})",
        "median (min..max)",
        f"over {base} (min..max)",
    )
    rows = [header]
    for name, series in comparison.series.items():
        rows.append((name, str(series), "" if name == base else str(comparison.ratio(name, base))))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(line.rstrip() for line in lines)


def _field(path: str, name: str) -> str:
    """The value of the first `name: value` line of a file under /proc."""
    for line in Path(path).read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
