"""The state directory of a job: opened, checked against the job that is asked for, and locked."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from penstock.batch import manifest as manifests
from penstock.batch.assemble import Segment, failed_segments, segments
from penstock.batch.counts import Counts
from penstock.batch.journal import Journal, Part, remove
from penstock.batch.manifest import Manifest, StreamSum
from penstock.batch.outputs import Output
from penstock.batch.runs import union, without
from penstock.errors import JobError, OutputError

_LOCK = "lock"


class State:
    """A job's manifest and journal, held by this process until `close`.

    Made by `open`. `complete` says that there is nothing to do.
    """

    def __init__(self, output: Output, manifest: Manifest, lock: int, *, keep_order: bool) -> None:
        self.output = output
        self.manifest = manifest
        self.keep_order = keep_order
        self.journal = Journal(output.folder, manifest.generation)
        self._lock = lock

    @classmethod
    def open(
        cls, output: Output, job: Mapping[str, Any], *, keep_order: bool, fresh: bool, retry_failed: bool
    ) -> State:
        """Take up the job in the output's state directory, or begin it.

        `fresh` discards what is there; `retry_failed` strikes the failed rows out, to be done again. Raises
        `OutputError` for an output of other origin, `JobMismatchError` for another job's, `JobError` if another
        process holds it.
        """
        folder = output.folder
        job = manifests.normal(job)
        if not fresh:
            _keep_others(output, job)
        output.prepare()
        lock = _acquire(folder)
        try:
            found = None if fresh else manifests.load(folder)
            state = cls(output, found or _begin(folder, job), lock, keep_order=keep_order)
            if not state.complete:
                state.journal.load()
                if state.journal.is_empty:
                    # Nothing was done, perhaps because the engine did not start: nothing need be the same.
                    state = cls(output, _begin(folder, job), lock, keep_order=keep_order)
            state.manifest.require(job, output.path)
            if state.complete and not output.exists():
                raise JobError(f"the job is complete, but {output.path} is gone; --fresh computes it again")
            if retry_failed:
                state._strike_failed()
            return state
        except BaseException:
            os.close(lock)
            raise

    @property
    def dead_letter(self) -> bool:
        """Whether failed rows stand in a file of their own."""
        return self.output.dead_letter is not None

    @property
    def complete(self) -> bool:
        """Whether all rows are done and stand in the output."""
        return self.manifest.status == "complete"

    def publish(self, empty: Any, columns: list[str]) -> None:
        """Put the parts together and the output in place. `empty` and `columns` are as for `Output.publish`."""

        def rows() -> Iterable[Segment]:
            return segments(self.journal.read_parts(), keep_order=self.keep_order, without_failed=self.dead_letter)

        if self.output.dead_letter is not None:
            self.output.publish_failed(failed_segments(self.journal.read_parts(), keep_order=self.keep_order))
        self.output.publish(rows, empty, columns)

    def finish(self, counts: Counts, stream: StreamSum | None) -> None:
        """Mark the job as complete and remove what it needs no more. `stream` tells which rows a stream gave."""
        self.manifest.status = "complete"
        self.manifest.result = {"rows": counts.rows, "errors": counts.errors}
        self.manifest.stream = stream
        self.manifest.published = self.output.stamp()
        self.manifest.save(self.output.folder)
        self.journal.discard_parts()

    def close(self) -> None:
        """Let go of the job."""
        os.close(self._lock)

    def _strike_failed(self) -> None:
        parts = list(self.journal.read_parts())
        failed_pending = any(record.outcome.error is not None for record in self.journal.pending.values())
        if not failed_pending and not any(part.failed for part in parts):
            return
        if self.complete:
            # The parts are gone: the output itself takes their place.
            if self.manifest.published not in (None, self.output.stamp()):
                raise OutputError(
                    f"{self.output.path} was changed since the job wrote it, so its rows cannot be told apart; "
                    "--fresh computes all of them again"
                )
            base = self.output.take_back(f"base-{self.manifest.generation + 1}")
            parts = _as_base(parts, base, keep_order=self.keep_order, without_failed=self.dead_letter)
        struck = [_struck(part) for part in parts]
        self.journal = self.journal.next_generation(struck)
        self.manifest.generation = self.journal.generation
        self.manifest.status = "running"
        self.manifest.save(self.output.folder)
        self.journal.load()


def _keep_others(output: Output, job: Mapping[str, Any]) -> None:
    """Raise `OutputError` if the job would write over a file that is none of its own."""
    found = manifests.load(output.folder)
    if found is None and output.exists():
        raise OutputError(f"{output.path} exists and is not the output of this job; --fresh replaces it")
    letters = output.dead_letter
    own = found is not None and found.job.get("dead letter") == job.get("dead letter")
    if letters is not None and not own and os.path.exists(letters):
        raise OutputError(f"{letters} exists and has no dead letters of this job; --fresh replaces it")


def _as_base(parts: list[Part], file: str, *, keep_order: bool, without_failed: bool) -> list[Part]:
    """The parts of a complete job, as they stand in its one output."""
    absent = [union(part.dropped, part.failed if without_failed else part.skipped) for part in parts]
    failed = [list(without(part.failed, gone)) for part, gone in zip(parts, absent, strict=True)]
    if keep_order:
        live = union(*(without(part.runs, gone) for part, gone in zip(parts, absent, strict=True)))
        return [Part(file, live, failed=union(*failed), check=None)] if live else []
    placed: list[Part] = []
    at = 0
    for part, gone, bad in zip(parts, absent, failed, strict=True):
        runs = list(without(part.runs, gone))
        placed.append(Part(file, runs, at=at, failed=bad, check=None))
        at += placed[-1].rows
    return placed


def _struck(part: Part) -> Part:
    """The part with its failed rows dropped."""
    return Part(
        part.file,
        part.runs,
        at=part.at,
        dropped=union(part.dropped, part.failed),
        check=part.check,
    )


def _begin(folder: Path, job: Mapping[str, Any]) -> Manifest:
    """The manifest of a new job, in a state directory that holds nothing else."""
    for path in folder.iterdir():
        if path.name != _LOCK:
            remove(path)
    manifest = Manifest(dict(job))
    manifest.save(folder)
    return manifest


def _acquire(folder: Path) -> int:
    descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise JobError(f"another process is running this job ({folder})") from None
    return descriptor
