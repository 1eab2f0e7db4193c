"""What a job has done: its counts, the line that shows them on a terminal, and its result."""

from __future__ import annotations

import asyncio
import glob
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from msgspec import Struct

from penstock.balance.backoff import Pauses, span
from penstock.batch.read.files import filesystem, is_url
from penstock.batch.rows.row import Outcome, Row, RowForm
from penstock.errors import InputError, JobLimitError, OutputError
from penstock.observability import counted, is_terminal

if TYPE_CHECKING:
    import pyarrow as pa

    from penstock.batch.write.tables import Tables

_INTERVAL = 0.2


class Counts(Struct):
    """What a job has counted.

    `rows` are the finished rows of all its runs. They are `ok`, or in `errors` by type. `left_out`
    counts those that a filter keeps from the output. `total` is the number of rows to do, if known.

    The rest is of this run alone. `prompt_tokens`, of which `cached_tokens` were in a cache, and
    `completion_tokens` were computed, in `engine_calls`. Other rows were answered without
    computing: `deduplicated` from an equal request, `resumed` from an earlier run, `kept` from an
    earlier input, `from_cache` from the cache that jobs share. `large_calls` are rows for which a
    cascade asked its large model, the rows of its sample included. `blank` are rows whose prompt
    has nothing of them, as their columns are empty; they were asked like others. The run took
    `seconds`, and `row_seconds` of them after the engine was loaded. `pauses` are those that
    servers asked for.
    """

    rows: int = 0
    errors: dict[str, int] = msgspec.field(default_factory=dict)
    left_out: int = 0
    large_calls: int = 0
    blank: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    engine_calls: int = 0
    deduplicated: int = 0
    resumed: int = 0
    kept: int = 0
    from_cache: int = 0
    seconds: float = 0.0
    row_seconds: float = 0.0
    total: int | None = None
    pauses: Pauses = msgspec.field(default_factory=Pauses)

    @property
    def failed(self) -> int:
        """Rows that ended in an error."""
        return sum(self.errors.values())

    @property
    def ok(self) -> int:
        return self.rows - self.failed

    @property
    def cached_share(self) -> float:
        """The share of the prompts' tokens that the engine had in its prefix cache, from 0 to 1."""
        return self.cached_tokens / self.prompt_tokens if self.prompt_tokens else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Tokens generated in a second, without the time in which the engine loads."""
        return self.completion_tokens / self.row_seconds if self.row_seconds > 0 else 0.0


@dataclass
class RunResult:
    """The end of a job: its `counts`, and where its rows are.

    `output` is the path or URL of the output, None for results in memory. `already_complete`: an
    earlier run had done everything; then only `counts.rows` and `counts.errors` are set.
    `stopped_by` is the number of the signal that drained the job before its end.
    """

    counts: Counts
    output: str | None = None
    already_complete: bool = False
    stopped_by: int | None = None
    _items: list[tuple[Row, Outcome]] = field(default_factory=list, repr=False)
    _form: RowForm | None = field(default=None, repr=False)
    _tables: Callable[[], Tables | None] | None = field(default=None, repr=False)

    def rows(self) -> Iterator[dict[str, Any]]:
        """The output rows. The values of a CSV are all text."""
        path = self.output
        _check_there(path)
        if path is None:
            if self._form is not None:
                for row, outcome in self._items:
                    yield self._form.output(row, outcome)
        elif path == "-":
            raise OutputError("the results went to standard output and cannot be read again")
        elif path.lower().endswith((".jsonl", ".ndjson")):
            with _open(path, "rb") as file:
                decode = msgspec.json.Decoder().decode
                for line in file:
                    yield decode(line)
        elif path.lower().endswith(".csv"):
            from penstock.batch.write.text import dicts_of

            with _open(path, "r") as file:
                yield from dicts_of(file)
        else:
            from penstock.batch.values.arrow import python_rows

            for batch in self.table().to_batches(max_chunksize=1024):
                yield from python_rows(batch)

    async def rows_to_read(self) -> Any:
        """What a job with this result as its source reads. Raises `InputError` for "-"."""
        if self.output == "-":
            raise InputError("rows that went to standard output cannot be read again")
        return self.output if self.output is not None else list(self.rows())

    def table(self) -> pa.Table:
        """The output rows as an Arrow table."""
        from penstock.batch.read.arrow import read_parquet

        if (
            self.output is None
            and self._tables is not None
            and (tables := self._tables()) is not None
        ):
            if not self._items:
                return tables.empty()
            return tables.make(
                [row for row, _ in self._items], [outcome for _, outcome in self._items]
            )
        if self.output not in (None, "-") and not self.output.lower().endswith(
            (".jsonl", ".ndjson", ".csv")
        ):
            _check_there(self.output)
            return read_parquet(_parquet_files(self.output))
        from penstock.batch.write.tables import from_rows

        return from_rows(list(self.rows()))


def _check_there(path: str | None) -> None:
    if path not in (None, "-") and not is_url(path) and not os.path.exists(path):
        raise OutputError(f"{path} is no longer there: it was moved or removed since the job ended")


def _open(path: str, mode: str) -> Any:
    options: dict[str, Any] = {"encoding": "utf-8", "newline": ""} if mode == "r" else {}
    if is_url(path):
        import fsspec

        return fsspec.open(path, mode, **options).open()
    return open(path, mode, **options)


def _parquet_files(path: str) -> list[str]:
    if is_url(path):
        fs, inner = filesystem(path)
        found = (
            sorted(fs.glob(f"{inner.rstrip('/')}/part-*.parquet")) if fs.isdir(inner) else [inner]
        )
        return [fs.unstrip_protocol(name) for name in found]
    return (
        sorted(glob.glob(os.path.join(glob.escape(path), "part-*.parquet")))
        if os.path.isdir(path)
        else [path]
    )


class Progress:
    """A line on standard error: rows, rows/s, tokens/s, errors, time left. `async with` shows it.

    `shown`: whether to show it; None: if standard error is a terminal.
    """

    def __init__(self, counts: Counts, shown: bool | None) -> None:
        self._counts = counts
        self._shown = is_terminal() if shown is None else shown
        self._bar: Any = None
        self._task: asyncio.Task[None] | None = None
        self._began = time.monotonic() - counts.row_seconds
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

    async def __aexit__(self, *_: object) -> None:
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
        pauses, left = counts.pauses, (counts.total or 0) - counts.rows
        parts = (
            f"{counts.rows:,} rows"
            if counts.total is None
            else f"{counts.rows:,}/{counts.total:,} rows",
            f"{rate:,.0f} rows/s",
            f"{counts.completion_tokens / seconds:,.0f} tokens/s",
            f"{span(left / rate)} left" if counts.total is not None and rate > 0 else "",
            f"{counts.failed:,} errors" if counts.failed else "",
            f"a pause of {span(pauses.last_s)} for {pauses.server}" if pauses.is_now else "",
            f"{pauses.given_up:,} given up after refusals" if pauses.given_up else "",
        )
        return " · ".join(filter(None, parts))


def summary(result: RunResult) -> str:
    """How a job went, in lines: rows, errors by type, tokens, time, and the place of the output."""
    counts = result.counts
    if result.already_complete:
        return (
            f"Complete already: {_rows(counts)} in {result.output}. Nothing to do; --fresh computes"
            " it again."
        )
    taken = [
        f"{number:,} {what}"
        for number, what in (
            (counts.resumed, "from an earlier run"),
            (counts.kept, "kept from the earlier input"),
            (counts.from_cache, "from the cache"),
            (counts.deduplicated, "from an equal request"),
        )
        if number
    ]
    saved = 1 - counts.large_calls / max(counts.rows - counts.resumed, 1)
    pauses, output = counts.pauses, result.output
    lines = (
        f"{_rows(counts)} ({', '.join(taken)})" if taken else _rows(counts),
        *(f"  {number:,} × {kind}" for kind, number in sorted(counts.errors.items())),
        f"{counts.prompt_tokens:,} tokens in ({counts.cached_tokens:,} cached),"
        f" {counts.completion_tokens:,} out, {span(counts.seconds)},"
        f" {counts.tokens_per_second:,.0f} tokens/s",
        f"Asked like others, with all columns of the prompt empty: {counted(counts.blank, 'row')}"
        if counts.blank
        else "",
        f"Large model: asked {counts.large_calls:,} times, {max(saved, 0):.0%} saved"
        if counts.large_calls
        else "",
        f"Pauses for servers: {pauses.count:,}, up to {span(pauses.longest_s)} for {pauses.server}"
        if pauses.count
        else "",
        f"Given up after a server's refusals: {pauses.given_up:,}" if pauses.given_up else "",
        f"Output: {output}" if output not in (None, "-") else "",
    )
    return "\n".join(filter(None, lines))


def ending(
    error: BaseException | None, *, finished: bool
) -> Literal["complete", "stopped", "failed"]:
    """How a job ended. A job that a signal drained, that was cancelled or that reached a limit is
    "stopped", and can be resumed.
    """
    if error is None:
        return "complete" if finished else "stopped"
    return "stopped" if isinstance(error, asyncio.CancelledError | JobLimitError) else "failed"


def _rows(counts: Counts) -> str:
    failed = f", {counts.failed:,} failed" if counts.failed else ""
    kept = f", {counts.ok - counts.left_out:,} kept" if counts.left_out else ""
    return f"{counted(counts.rows, 'row')}{kept}{failed}"
