"""A job's report: what is observed of its rows, in bounded memory whatever their number, as one
HTML page without scripts or network, its charts inline SVG. It is written when the job ends,
however it ends.

All text of rows is escaped, and the page's policy lets a browser load and run nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import time
from base64 import b64encode
from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import sha256
from html import escape
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec
from msgspec import Struct, field

from penstock import private_files
from penstock.balance.backoff import span
from penstock.batch.job.result import Counts, ending
from penstock.batch.rows.row import Outcome, Row
from penstock.batch.values.plain import json_line
from penstock.batch.write.state_files import writing
from penstock.config import masked
from penstock.errors import OutputError, printable

OBSERVED_FILE = "report.json"
"""What was observed, in the state directory; the page is elsewhere."""
_MOST_BINS = 240
_PER_DOUBLING = 4
_SAMPLES = 12
_EXAMPLES = 3
_MOST_CHARACTERS = 1500
_GOLDEN = 0x9E3779B97F4A7C15  # 2^64 over the golden ratio: its multiples are spread evenly


class Spread(Struct):
    """How values are distributed: how many lie in each bin. A bin is a quarter of a doubling; the
    first begins at 1.
    """

    bins: dict[int, int] = field(default_factory=dict)
    count: int = 0
    total: float = 0.0
    largest: float = 0.0

    def add(self, value: float) -> None:
        place = math.floor(_PER_DOUBLING * math.log2(max(value, 1)))
        self.bins[place] = self.bins.get(place, 0) + 1
        self.count += 1
        self.total += value
        self.largest = max(self.largest, value)

    def quantile(self, share: float) -> float:
        """The value below which this share of the values lies, within 9 %."""
        left = share * self.count
        for place in sorted(self.bins):
            left -= self.bins[place]
            if left <= 0:
                return min(self.largest, float(2 ** ((place + 0.5) / _PER_DOUBLING)))
        return self.largest

    @staticmethod
    def least(place: int) -> float:
        """The least value in the bin at `place`."""
        return float(2 ** (place / _PER_DOUBLING))


class Example(Struct):
    """A row, shortened: its number in the input, its columns, and what became of it."""

    index: int
    columns: str
    response: str = ""
    error: str = ""


class Observed(Struct):
    """What was observed of the rows that one generation of a job finished, over all its runs. The
    generation of a job grows when it tries failed rows again or takes a changed input.

    `speed` has a bin for each `width` seconds of running: the rows that finished, and the tokens
    that were generated. `seconds` is how long the job ran before this run. `examples` are failed
    rows, by kind of error; `samples` are drawn at random from all rows. `prompts_computed` counts
    the tokens of prompts, without those of rows that were answered from memory.
    """

    generation: int = 0
    seconds: float = 0.0
    width: float = 1.0
    speed: list[tuple[int, int]] = field(default_factory=list)
    latency_ms: Spread = field(default_factory=Spread)
    prompt_tokens: Spread = field(default_factory=Spread)
    completion_tokens: Spread = field(default_factory=Spread)
    prompts_computed: int = 0
    finish_reasons: dict[str, int] = field(default_factory=dict)
    errors: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[Example]] = field(default_factory=dict)
    samples: list[Example] = field(default_factory=list)
    rows: int = 0


class Observer:
    """Notes rows as they finish. What was noted is kept in the state directory `folder` for a run
    that resumes, while this run `owns_folder`: while it has the directory's lock. None: no run
    resumes.
    """

    def __init__(
        self,
        folder: Path | None = None,
        generation: int = 0,
        owns_folder: Callable[[], bool] = lambda: True,
    ) -> None:
        self._folder = folder
        self._owns_folder = owns_folder
        self.observed = (None if folder is None else load(folder, generation)) or Observed(
            generation=generation
        )
        self._before = self.observed.seconds
        self._began = time.monotonic()
        self._tokens = 0, 0

    def note(self, row: Row, outcome: Outcome, counts: Counts) -> None:
        """A row is finished; `counts` has its tokens already."""
        seen = self.observed
        seen.rows += 1
        prompts, answers = self._tokens
        self._tokens = counts.prompt_tokens, counts.completion_tokens
        seen.prompts_computed += counts.prompt_tokens - prompts
        self._note_speed(counts.completion_tokens - answers)
        if outcome.usage is not None:
            seen.prompt_tokens.add(outcome.usage.prompt_tokens)
            seen.completion_tokens.add(outcome.usage.completion_tokens)
        if outcome.latency_ms is not None:
            seen.latency_ms.add(outcome.latency_ms)
        error = outcome.error
        if error is None:
            reason = outcome.finish_reason or "none"
            seen.finish_reasons[reason] = seen.finish_reasons.get(reason, 0) + 1
        else:
            seen.errors[error.type] = seen.errors.get(error.type, 0) + 1
            examples = seen.examples.setdefault(error.type, [])
            if len(examples) < _EXAMPLES:
                examples.append(_example(row, outcome))
        # Reservoir sampling: each row is among the samples with the same chance. Row n's place is n
        # hashed onto 0..n-1, so a run that resumes needs no state of a random generator.
        place = (seen.rows * _GOLDEN % (1 << 64)) * seen.rows >> 64
        if len(seen.samples) < _SAMPLES:
            seen.samples.append(_example(row, outcome))
        elif place < _SAMPLES:
            seen.samples[place] = _example(row, outcome)

    def save(self) -> None:
        """Write what was noted, for another run. A failure is ignored."""
        self.observed.seconds = self._before + time.monotonic() - self._began
        if self._folder is not None and self._owns_folder():
            with contextlib.suppress(OSError):
                private_files.replace(
                    self._folder / OBSERVED_FILE, msgspec.json.encode(self.observed)
                )

    def _note_speed(self, tokens: int) -> None:
        """Count a row in the bin of this moment. Past `_MOST_BINS` bins, pairs of them are merged
        and `width` doubles.
        """
        seen = self.observed
        now = self._before + time.monotonic() - self._began
        while now >= _MOST_BINS * seen.width:
            pairs = zip(seen.speed[::2], [*seen.speed[1::2], (0, 0)], strict=False)
            seen.speed = [(a[0] + b[0], a[1] + b[1]) for a, b in pairs]
            seen.width *= 2
        place = int(now / seen.width)
        while len(seen.speed) <= place:
            seen.speed.append((0, 0))
        before = seen.speed[place]
        seen.speed[place] = (before[0] + 1, before[1] + tokens)


def load(folder: Path, generation: int) -> Observed | None:
    """What earlier runs of this generation noted; None if nothing, or it is damaged."""
    try:
        found = msgspec.json.decode((folder / OBSERVED_FILE).read_bytes(), type=Observed)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return None
    return found if found.generation == generation else None


def _example(row: Row, outcome: Outcome) -> Example:
    error = outcome.error
    answer = outcome.response if outcome.response is not None else _shown(outcome.parsed)
    return Example(
        row.index,
        _columns(row.values),
        _short(answer),
        "" if error is None else _short(f"{error.stage}: {error.message}"),
    )


def _columns(values: Mapping[str, Any] | None) -> str:
    if values is None:
        return ""
    return _short("\n".join(f"{name}: {_shown(value)}" for name, value in values.items()))


def _shown(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value[:_MOST_CHARACTERS]
    try:
        return json_line({"": value})[4:-2].decode()  # without `{"":` and `}` with its line end
    except Exception:  # values of the caller's own types can fail in any way
        return f"({type(value).__name__})"


def _short(text: str) -> str:
    text = text.encode(errors="backslashreplace").decode()
    return text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]}…"


_STYLE = """
:root { color-scheme: light dark; --ink: #1c2730; --back: #ffffff; --line: #c9d2d9;
  --bar: #1f6feb; --soft: #f3f6f8; --bad: #b42318; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4eaee; --back: #12181d; --line: #3a4650;
  --bar: #6aa5ff; --soft: #1b242b; --bad: #ff8a7a; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--back);
  max-width: 60rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; overflow-wrap: anywhere; } h2 { font-size: 1.15rem; margin-top: 2rem; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .3rem .6rem .3rem 0;
  border-bottom: 1px solid var(--line); overflow-wrap: anywhere; }
th { font-weight: 600; width: 12rem; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: var(--soft); margin: 0;
  padding: .5rem; font-size: .85rem; }
svg { width: 100%; height: auto; } rect { fill: var(--bar); }
text { fill: var(--ink); font: 12px system-ui, sans-serif; }
line { stroke: var(--line); } .bad { color: var(--bad); }
article { margin: 1rem 0; }
"""
_WIDTH, _HEIGHT, _LEFT, _FOOT = 800, 200, 60, 20


def page(title: str, state: str, counts: Counts, seen: Observed, job: Mapping[str, Any]) -> str:
    """The page of a job called `title`, in this state. `job` holds the job's options."""
    digest = b64encode(sha256(_STYLE.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    parts = [
        f"<h1>{_text(title)}</h1>",
        _table(_numbers(state, counts, seen)),
        *_speed(seen),
        *_spread("Latency of rows", "ms", seen.latency_ms),
        *_spread("Length of prompts", "tokens", seen.prompt_tokens),
        *_spread("Length of answers", "tokens", seen.completion_tokens),
        *_errors(seen),
        *_samples(seen),
        "<h2>The job</h2>",
        _table((name, _value(value)) for name, value in job.items() if value is not None),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(parts)
        + "\n</main>\n</body>\n</html>\n"
    )


def _text(value: object) -> str:
    return escape(printable(str(value)).replace("\0", "�"))


def _value(value: Any) -> str:
    if isinstance(value, str):
        return value
    try:
        return msgspec.json.encode(value, enc_hook=str).decode()
    except (UnicodeEncodeError, TypeError, ValueError):
        return repr(value)


def _table(rows: Iterable[tuple[str, str]]) -> str:
    cells = (f"<tr><th>{_text(name)}</th><td>{_text(value)}</td></tr>" for name, value in rows)
    return f"<table>\n{chr(10).join(cells)}\n</table>"


def _numbers(state: str, counts: Counts, seen: Observed) -> list[tuple[str, str]]:
    rows = [
        ("State", state),
        ("Rows", f"{counts.rows:,}, {counts.failed:,} of them failed"),
        *((kind, f"{count:,}") for kind, count in sorted(counts.errors.items())),
    ]
    rows += [
        (name, f"{count:,}")
        for name, count in (
            ("Left out by the filter", counts.left_out),
            ("From an earlier run", counts.resumed),
            ("With all columns of the prompt empty", counts.blank),
            ("Kept from the earlier input", counts.kept),
            ("From the cache", counts.from_cache),
            ("From an equal request", counts.deduplicated),
        )
        if count
    ]
    rows += [
        ("Tokens computed, of prompts", f"{seen.prompts_computed:,}"),
        ("Tokens computed, of answers", f"{sum(tokens for _, tokens in seen.speed):,}"),
        ("Time", span(seen.seconds)),
    ]
    if seen.rows != counts.rows:
        rows.append(("Observed", f"{seen.rows:,} rows; what follows is of these"))
    return rows


def _speed(seen: Observed) -> list[str]:
    if not seen.speed:
        return []
    end = span(len(seen.speed) * seen.width)
    return [
        part
        for name, place in (("Rows", 0), ("Tokens of answers", 1))
        for part in (
            f"<h2>{name} a second</h2>",
            _bars(
                f"{name} a second over the time of the job",
                [each[place] / seen.width for each in seen.speed],
                "0 s",
                end,
            ),
        )
        if any(each[place] for each in seen.speed)
    ]


def _spread(title: str, unit: str, spread: Spread) -> list[str]:
    if not spread.count:
        return []
    first, last = min(spread.bins), max(spread.bins)
    heights = [float(spread.bins.get(place, 0)) for place in range(first, last + 1)]
    marks = ", ".join(
        f"{name} {spread.quantile(share):,.0f}"
        for name, share in (("median", 0.5), ("90 %", 0.9), ("99 %", 0.99))
    )
    return [
        f"<h2>{title}</h2>",
        f"<p>{marks}, mean {spread.total / spread.count:,.1f}, largest {spread.largest:,.0f}"
        f" {unit}; {spread.count:,} rows</p>",
        _bars(
            f"{title}: rows in each quarter of a doubling",
            heights,
            f"{Spread.least(first):,.0f} {unit}",
            f"{Spread.least(last + 1):,.0f} {unit}",
        ),
    ]


def _bars(title: str, heights: Sequence[float], first: str, last: str) -> str:
    most = max(heights) or 1.0
    step = (_WIDTH - _LEFT) / len(heights)
    bars = [
        f'<rect x="{_LEFT + place * step:.1f}" y="{_HEIGHT * (1 - height / most):.1f}"'
        f' width="{max(step - 1, 0.5):.1f}" height="{_HEIGHT * height / most:.1f}"/>'
        for place, height in enumerate(heights)
        if height
    ]
    foot = _HEIGHT + _FOOT - 4
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT + _FOOT}" role="img"><title>{_text(title)}</title>'
        f'<line x1="{_LEFT}" y1="{_HEIGHT}" x2="{_WIDTH}" y2="{_HEIGHT}"/>'
        f'<text x="{_LEFT - 6}" y="12" text-anchor="end">{most:,.4g}</text>'
        f'<text x="{_LEFT - 6}" y="{_HEIGHT}" text-anchor="end">0</text>'
        f'<text x="{_LEFT}" y="{foot}">{_text(first)}</text>'
        f'<text x="{_WIDTH}" y="{foot}" text-anchor="end">{_text(last)}</text>'
        f"{''.join(bars)}</svg>"
    )


def _errors(seen: Observed) -> list[str]:
    if not seen.errors:
        return []
    parts = ["<h2>Errors</h2>"]
    for kind, count in sorted(seen.errors.items(), key=lambda item: -item[1]):
        parts.append(f'<h3 class="bad">{count:,} × {_text(kind)}</h3>')
        parts += [_example_part(each) for each in seen.examples.get(kind, [])]
    return parts


def _samples(seen: Observed) -> list[str]:
    ordered = sorted(seen.samples, key=lambda each: each.index)
    return ["<h2>Some rows</h2>", *map(_example_part, ordered)] if ordered else []


def _example_part(each: Example) -> str:
    parts = [f"<article><h3>Row {each.index}</h3>"]
    if each.error:
        parts.append(f'<p class="bad">{_text(each.error)}</p>')
    parts += [f"<pre>{_text(part)}</pre>" for part in (each.columns, each.response) if part]
    return "\n".join([*parts, "</article>"])


_SAVE_EVERY_S = 1.0
_STATES = {"complete": "complete", "stopped": "stopped; it can be resumed", "failed": "failed"}


class Report:
    """The report at `path` of the rows that finish inside `async with`. It is written at the end.

    `job` holds the job's options; `folder`, `generation` and `owns_folder` are as in `Observer`.
    The caller sets `finished` to False if the job ends before all rows are finished.
    """

    def __init__(
        self,
        path: str,
        job: Mapping[str, Any],
        counts: Counts,
        folder: Path | None = None,
        generation: int = 0,
        owns_folder: Callable[[], bool] = lambda: True,
    ) -> None:
        self._path = path
        self._job = job
        self._counts = counts
        self.observer = Observer(folder, generation, owns_folder)
        self.finished = True
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Report:
        self._task = asyncio.create_task(self._keep())
        return self

    async def __aexit__(
        self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
        self.observer.save()
        state = _STATES[ending(error, finished=self.finished)]
        if error is not None and str(error):
            state = f"{state}: {error}"
        with contextlib.nullcontext() if error is None else contextlib.suppress(OutputError):
            write(self._path, state, self._counts, self.observer.observed, self._job)

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(_SAVE_EVERY_S)
            self.observer.save()


def write_again(
    path: str, job: Mapping[str, Any], counts: Counts, folder: Path, generation: int
) -> None:
    """Write the report of a complete job anew, with what its runs observed if they had a report."""
    write(path, "complete", counts, load(folder, generation) or Observed(), job)


def write(
    path: str, state: str, counts: Counts, observed: Observed, job: Mapping[str, Any]
) -> None:
    """Write a report, at once. Raises `OutputError`."""
    title = f"penstock run: {job.get('input', 'rows')}"
    text = page(title, state, counts, observed, masked(dict(job)))
    with writing(path):
        temporary = f"{path}.tmp"
        with open(temporary, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
        os.replace(temporary, path)
