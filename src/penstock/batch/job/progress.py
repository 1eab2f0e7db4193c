"""Shows a job's progress on a terminal, and says in the end what was done."""

from __future__ import annotations

import asyncio
import time
from types import TracebackType
from typing import Any

from penstock.balance.backoff import span
from penstock.batch.job.counts import Counts
from penstock.batch.job.result import RunResult
from penstock.observability import is_terminal

_INTERVAL = 0.2


class Progress:
    """A line on standard error: rows, rows/s, tokens/s, errors, time left. `async with` shows it.

    `shown` None means: where standard error is a terminal.
    """

    def __init__(self, counts: Counts, shown: bool | None) -> None:
        self._counts = counts
        self._shown = is_terminal() if shown is None else shown
        self._bar: Any = None
        self._task: asyncio.Task[None] | None = None
        self._began = time.monotonic()
        self._rows_before = counts.rows

    async def __aenter__(self) -> Progress:
        if self._shown:
            from tqdm import tqdm

            tqdm.monitor_interval = 0  # else it would start a thread
            total = self._counts.total
            shape = "{desc}" if total is None else "{bar:24} {desc}"
            self._bar = tqdm(total=total, bar_format=shape, leave=False, dynamic_ncols=True)
            self._task = asyncio.create_task(self._refresh())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            self._bar.close()

    async def _refresh(self) -> None:
        while True:
            self._bar.n = self._counts.rows
            self._bar.set_description_str(self._line())
            await asyncio.sleep(_INTERVAL)

    def _line(self) -> str:
        counts = self._counts
        seconds = max(time.monotonic() - self._began, 1e-9)
        rate = (counts.rows - self._rows_before) / seconds
        parts = [f"{rate:,.0f} rows/s", f"{counts.completion_tokens / seconds:,.0f} tokens/s"]
        rows = f"{counts.rows:,} rows"
        if counts.total is not None:
            rows = f"{counts.rows:,}/{counts.total:,} rows"
            if rate > 0:
                parts.append(f"{duration((counts.total - counts.rows) / rate)} left")
        if counts.failed:
            parts.append(f"{counts.failed:,} errors")
        if counts.pauses.is_now:
            parts.append(f"a pause of {span(counts.pauses.last_s)} for {counts.pauses.server}")
        if counts.pauses.given_up:
            parts.append(f"{counts.pauses.given_up:,} given up after refusals")
        return " · ".join([rows, *parts])


def summary(result: RunResult) -> str:
    """The lines that tell how a job went: rows, errors by type, tokens, time, where the output
    is.
    """
    counts = result.counts
    if result.already_complete:
        return (
            f"Complete already: {_rows(counts)} in {result.output}. Nothing to do; --fresh computes"
            " it again."
        )
    lines = [_rows(counts)]
    taken = [
        f"{number:,} {what}"
        for number, what in (
            (counts.resumed, "from an earlier run"),
            (counts.deduplicated, "from an equal request"),
        )
        if number
    ]
    if taken:
        lines[0] += f" ({', '.join(taken)})"
    lines += [f"  {number:,} × {kind}" for kind, number in sorted(counts.errors.items())]
    lines.append(
        f"{counts.prompt_tokens:,} tokens in ({counts.cached_tokens:,} cached),"
        f" {counts.completion_tokens:,} out, {duration(counts.seconds)},"
        f" {counts.tokens_per_second:,.0f} tokens/s"
    )
    pauses = counts.pauses
    if pauses.count:
        lines.append(
            f"Pauses for servers: {pauses.count:,}, up to {span(pauses.longest_s)} for"
            f" {pauses.server}"
        )
    if pauses.given_up:
        lines.append(f"Given up after a server's refusals: {pauses.given_up:,}")
    if result.output not in (None, "-"):
        lines.append(f"Output: {result.output}")
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """A time span in two units at most."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


def _rows(counts: Counts) -> str:
    failed = f", {counts.failed:,} failed" if counts.failed else ""
    return f"{counts.rows:,} rows{failed}"
