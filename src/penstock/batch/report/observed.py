"""What is observed of a job's rows for its report, in bounded memory whatever their number."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct, field

from penstock import private_files
from penstock.batch.job.result import Counts
from penstock.batch.rows.row import Outcome, Row
from penstock.batch.values.plain import json_line

FILE = "report.json"
_MOST_BINS = 240
_PER_DOUBLING = 4
_SAMPLES = 12
_EXAMPLES = 3
_MOST_CHARACTERS = 1500
_SPREAD = 0x9E3779B97F4A7C15


class Spread(Struct):
    """How values are distributed: their number in each quarter of a doubling, from 1 up."""

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
        """About the value below which this share of the values lies: within 9 % of it."""
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
    """Of the rows that one generation of a job finished, over all its runs.

    `speed` has, for each `width` seconds of running, the rows that finished and the tokens that
    were generated; `seconds` is how long it ran before this run. `examples` are of failed rows, by
    kind; `samples` a random draw of all rows.
    """

    generation: int = 0
    seconds: float = 0.0
    width: float = 1.0
    speed: list[tuple[int, int]] = field(default_factory=list)
    latency_ms: Spread = field(default_factory=Spread)
    prompt_tokens: Spread = field(default_factory=Spread)
    completion_tokens: Spread = field(default_factory=Spread)
    finish_reasons: dict[str, int] = field(default_factory=dict)
    errors: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[Example]] = field(default_factory=dict)
    samples: list[Example] = field(default_factory=list)
    rows: int = 0


class Observer:
    """Notes rows as they finish. `folder` keeps what was noted for a run that resumes, while it is
    `held`; None: this run is all.
    """

    def __init__(
        self,
        folder: Path | None = None,
        generation: int = 0,
        held: Callable[[], bool] = lambda: True,
    ) -> None:
        self._folder = folder
        self._held = held
        self.observed = (None if folder is None else load(folder, generation)) or Observed(
            generation=generation
        )
        self._before = self.observed.seconds
        self._began = time.monotonic()
        self._tokens = 0

    def note(self, row: Row, outcome: Outcome, counts: Counts) -> None:
        """A row is finished; `counts` has its tokens already."""
        seen = self.observed
        seen.rows += 1
        self._note_speed(counts.completion_tokens - self._tokens)
        self._tokens = counts.completion_tokens
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
        # Of the first n rows each is among the samples with the same chance.
        place = (seen.rows * _SPREAD % (1 << 64)) * seen.rows >> 64
        if len(seen.samples) < _SAMPLES:
            seen.samples.append(_example(row, outcome))
        elif place < _SAMPLES:
            seen.samples[place] = _example(row, outcome)

    def save(self) -> None:
        """Keep what was noted, for another run. A failure is ignored."""
        self.observed.seconds = self._before + time.monotonic() - self._began
        if self._folder is not None and self._held():
            with contextlib.suppress(OSError):
                private_files.replace(self._folder / FILE, msgspec.json.encode(self.observed))

    def _note_speed(self, tokens: int) -> None:
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
        found = msgspec.json.decode((folder / FILE).read_bytes(), type=Observed)
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
        return json_line({"": value})[4:-2].decode()
    except Exception:  # values of the caller's own types can fail in any way
        return f"({type(value).__name__})"


def _short(text: str) -> str:
    text = text.encode(errors="backslashreplace").decode()
    return text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]}…"
