"""Where the time of the hot paths goes, as flame graphs in docs/images: a job, and a server under
load, both on the simulated engine at zero latency, so that only Penstock's own work is seen.

    python tools/flame_graphs.py [run|serve]

Needs py-spy, which samples all Python threads that are on a core, 250 times a second.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

ROOT = Path(__file__).parents[1]
PENSTOCK = str(Path(sys.executable).with_name("penstock"))
_RATE = 250
_WIDTH, _ROW, _TOP = 1200, 17, 44
_LEAST = 0.004  # of all samples: a narrower box is not drawn
_COLOURS = {
    "penstock": "#7cc4bf",
    "simulated": "#e0a13d",
    "other": "#dfe6e6",
}


@dataclass
class Frame:
    """A function in its stack: samples in it and below, and what it called."""

    samples: int = 0
    calls: dict[str, Frame] = field(default_factory=dict)


def main() -> None:
    """Sample what was asked for, and write the pictures."""
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    options.add_argument("path", nargs="?", choices=("run", "serve"), help="default: both")
    chosen = options.parse_args().path
    if chosen != "serve":
        write("run", "penstock run, 60,000 rows", sample_run())
    if chosen != "run":
        write("serve", "penstock serve, 32 clients that stream", sample_serve())


def sample_run() -> Mapping[str, int]:
    """The stacks of a job of 60,000 rows."""
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder, "rows.jsonl")
        rows.write_text("".join(f'{{"text": "ticket number {n}"}}\n' for n in range(60_000)))
        argv = [PENSTOCK, "run", str(rows), "-o", str(Path(folder, "out.jsonl"))]
        return stacks([*argv, "--prompt", "{text}", "--engine", "simulated", "--quiet"])


def sample_serve() -> Mapping[str, int]:
    """The stacks of a server while 32 clients stream 64 tokens each."""
    argv = [PENSTOCK, "serve", "simulated", "--engine", "simulated", "--port", "18743"]
    load = [PENSTOCK, "bench", "serve", "http://127.0.0.1:18743", "--clients", "32"]
    with tempfile.NamedTemporaryFile(suffix=".txt") as raw:
        engine = json.dumps({"output_tokens": 64})
        with subprocess.Popen(
            [*argv, "--engine-kwargs", engine, "--log-level", "warning"], stdout=subprocess.DEVNULL
        ) as server:
            try:
                _wait_for("http://127.0.0.1:18743/v1/models")
                sampling = subprocess.Popen(
                    [*_spy(raw.name), "--duration", "12", "--pid", str(server.pid)]
                )
                subprocess.run(
                    [*load, "--requests", "4000", "--output-tokens", "64"],
                    check=True,
                    stdout=subprocess.DEVNULL,
                )
                sampling.wait()
            finally:
                server.terminate()
        return parsed(Path(raw.name).read_text())


def stacks(argv: list[str]) -> Mapping[str, int]:
    """Samples of each stack of a command, from its start to its end."""
    with tempfile.NamedTemporaryFile(suffix=".txt") as raw:
        subprocess.run([*_spy(raw.name), "--", *argv], check=True, stdout=subprocess.DEVNULL)
        return parsed(Path(raw.name).read_text())


def _spy(output: str) -> list[str]:
    options = ["--rate", str(_RATE), "--format", "raw", "--function", "--output", output]
    return ["py-spy", "record", *options]


def _wait_for(url: str) -> None:
    for _ in range(300):
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError("the server did not start")


def parsed(raw: str) -> Mapping[str, int]:
    """py-spy's lines, `frame;frame;… samples`, as a table."""
    lines = (line.rpartition(" ") for line in raw.splitlines() if line.strip())
    return {stack: int(samples) for stack, _, samples in lines}


def write(name: str, title: str, found: Mapping[str, int]) -> None:
    """Draw the stacks into docs/images/flame-NAME.svg."""
    path = ROOT / "docs" / "images" / f"flame-{name}.svg"
    path.write_text(picture(title, found))
    print(f"{path.relative_to(ROOT)}: {sum(found.values())} samples")


def picture(title: str, found: Mapping[str, int]) -> str:
    """The flame graph: a box's width is the share of samples in which the function was on the
    stack, callers above what they called.
    """
    root = Frame()
    for stack, samples in found.items():
        root.samples += samples
        frame = root
        for name in stack.split(";"):
            frame = frame.calls.setdefault(name, Frame())
            frame.samples += samples
    boxes = list(_boxes(root, 0.0, 0, root.samples))
    height = _TOP + _ROW * (max((row for row, *_ in boxes), default=0) + 1) + 8
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img">',
        f"<title>{escape(title)}</title>",
        "<style>text{font:11px ui-monospace,monospace;fill:#1c2b2d}</style>",
        f'<rect width="{_WIDTH}" height="{height}" fill="#fff"/>',
        f'<text x="8" y="18">{escape(title)}, {root.samples} samples. Teal: Penstock; orange: the'
        " simulated engine; grey: Python and libraries.</text>",
        *(_box(*box) for box in boxes),
        "</svg>\n",
    ]
    return "\n".join(parts)


def _boxes(
    frame: Frame, left: float, row: int, total: int
) -> Iterator[tuple[int, float, float, str]]:
    for name, called in sorted(frame.calls.items(), key=lambda item: -item[1].samples):
        share = called.samples / total
        if share >= _LEAST:
            yield row, left, share, name
            yield from _boxes(called, left, row + 1, total)
        left += share


def _box(row: int, left: float, share: float, name: str) -> str:
    function, _, file = name.partition(" ")
    kind = "other"
    if "penstock/" in file:
        kind = "simulated" if "engines/simulated" in file else "penstock"
    x, y, width = left * _WIDTH, _TOP + row * _ROW, share * _WIDTH
    text = function[: int(width / 6.7)] if width > 30 else ""
    return (
        f"<g><title>{escape(name)}: {share:.1%}</title>"
        f'<rect x="{x:.1f}" y="{y - 12}" width="{max(width - 0.6, 0.4):.1f}" height="{_ROW - 1}"'
        f' fill="{_COLOURS[kind]}"/><text x="{x + 2:.1f}" y="{y}">{escape(text)}</text></g>'
    )


if __name__ == "__main__":
    main()
