"""Writes the report of a job when it ends, however it ends."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from penstock.batch.job.result import Counts, ending
from penstock.batch.report.observed import Observed, Observer, load
from penstock.batch.report.page import page
from penstock.batch.write.state_files import writing
from penstock.config import masked
from penstock.errors import OutputError

_SECONDS = 1.0
_STATES = {"complete": "complete", "stopped": "stopped; it can be resumed", "failed": "failed"}


class Report:
    """The report at `path` of the rows that move inside `async with`.

    `job` is what the job was asked to do; `folder` and `generation` are those of its state, which
    is written while it is `held`.
    """

    def __init__(
        self,
        path: str,
        job: Mapping[str, Any],
        counts: Counts,
        folder: Path | None = None,
        generation: int = 0,
        held: Callable[[], bool] = lambda: True,
    ) -> None:
        self._path = path
        self._job = job
        self._counts = counts
        self.observer = Observer(folder, generation, held)
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
            await asyncio.sleep(_SECONDS)
            self.observer.save()


def write_again(
    path: str, job: Mapping[str, Any], counts: Counts, folder: Path, generation: int
) -> None:
    """Write the report of a complete job anew, with what its runs noted if they had a report."""
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
