"""The state directory of a job: opened, checked against the job that is asked for, and locked."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from penstock.batch.job.result import Counts
from penstock.batch.write import manifest as manifests, outputs
from penstock.batch.write.journal import Journal
from penstock.batch.write.kept import Kept
from penstock.batch.write.manifest import Manifest, Stamp, StreamSum
from penstock.batch.write.outputs import Output
from penstock.batch.write.parts import Part, Segment, failed_segments, segments, union, without
from penstock.batch.write.state_files import LOCK_FILE, Lock, checksum_of, remove, writing
from penstock.errors import ConfigError, JobError, OutputError, printable

_log = logging.getLogger(__name__)


class State:
    """A job's manifest and journal. This process holds the job's lock from `open` to `close`.

    `complete` says that there is nothing to do. `taken_over` is how many rows an earlier input had
    that this run goes on after.
    """

    def __init__(
        self,
        output: Output,
        manifest: Manifest,
        lock: Lock,
        *,
        keep_order: bool,
        incremental: bool = False,
    ) -> None:
        self.output = output
        self.manifest = manifest
        self.keep_order = keep_order
        self.incremental = incremental
        self.taken_over = 0
        self._lock = lock
        self.journal = self._journal()

    @classmethod
    def open(
        cls,
        output: Output,
        job: Mapping[str, Any],
        *,
        keep_order: bool,
        fresh: bool,
        retry_failed: bool,
        incremental: bool = False,
        earlier: Mapping[str, Any] | None = None,
    ) -> State:
        """Resume the job in the output's state directory, or begin it.

        `fresh` discards an earlier job. `retry_failed` strikes out the failed rows, which then run
        again. `incremental` accepts a changed input, and keeps the answers of the earlier input;
        `earlier` is the fingerprint of an earlier input with which this one begins. The rows of
        damaged parts run again too, and the log says so.

        Raises `ConfigError` for an output that no job wrote, `JobMismatchError` for another job's
        output, `OutputError` for one that was changed since, and `JobError` if another process
        holds the job's lock or more than parts is damaged.
        """
        folder = output.folder
        job = manifests.normal(job)
        with writing(folder):
            if not fresh and manifests.load(folder) is None:
                _check_new(output)
        output.prepare()
        with writing(folder):
            lock = Lock(folder)
            try:
                found = None if fresh else manifests.load(folder)
                order = {"keep_order": keep_order, "incremental": incremental}
                state = cls(output, found or _begin(output, job, fresh=fresh), lock, **order)
                if not state.complete:
                    state._take_up()
                    if state.journal.is_empty and not state.journal.kept_files():
                        # No row was done, perhaps because the engine did not start: the job may
                        # be another one.
                        begun = _begin(output, job, fresh=fresh, before=state.manifest)
                        state = cls(output, begun, lock, **order)
                renewed = incremental and state._renew(job, earlier, failed_again=retry_failed)
                state.manifest.require(job, output.path)
                if state.complete:
                    if not output.exists():
                        raise JobError(
                            f"the job is complete, but {output.path} is gone; --fresh computes it"
                            " again"
                        )
                    state.journal.sweep()
                if retry_failed and not renewed:
                    state._strike_failed()
                return state
            except BaseException:
                lock.release()
                raise

    @property
    def dead_letter(self) -> bool:
        """Whether failed rows go to a file of their own."""
        return self.output.dead_letter is not None

    @property
    def complete(self) -> bool:
        """Whether all rows are done, and the output has them."""
        return self.manifest.status == "complete"

    @property
    def owns_folder(self) -> bool:
        """Whether this run still has the lock of the state directory."""
        try:
            self._lock.check()
        except OutputError:
            return False
        return True

    def publish(
        self, counts: Counts, stream: StreamSum | None, empty: Any, columns: list[str]
    ) -> None:
        """Assemble the output from the parts, and move it to its path: then the job is complete.

        `stream` is the checksum of a stream's rows; `empty` and `columns` are as for
        `Output.assemble`. After a crash at any moment, the manifest tells the next run which files
        are the job's.
        """
        with writing(self.output.folder):
            self._lock.check()
            self.journal.check_parts()
            parts = self.journal.read_parts()

            def rows() -> Iterable[Segment]:
                return segments(parts, keep_order=self.keep_order, without_failed=self.dead_letter)

            manifest, output = self.manifest, self.output
            self._check_place()
            made = {"output": output.assemble(rows, empty, columns)}
            if self.dead_letter:
                made["dead letter"] = output.assemble_failed(
                    failed_segments(parts, keep_order=self.keep_order)
                )
            self._check_place()
            manifest.published = _standing(self.output)
            manifest.placing = {
                which: output.places[which].stamp_of(path) for which, path in made.items()
            }
            manifest.output_checksum = checksum_of(made["output"])
            manifest.parts_checksum = self.journal.parts_mark
            manifest.result = {
                "rows": counts.rows,
                "errors": counts.errors,
                **({"left_out": counts.left_out} if counts.left_out else {}),
            }
            manifest.stream = stream
            manifest.status = "placing"
            self._lock.check()
            manifest.save(output.folder)
            for which in reversed(made):  # the output last: then the job is complete
                output.places[which].place(made[which], manifest.known(which))
            self._complete()

    def close(self) -> None:
        """Close the journal, and release the job's lock."""
        self._lock.release()

    def _take_up(self) -> None:
        """Read the journal of an unfinished job. Complete the job if only its last step is
        missing.
        """
        if (
            self.manifest.status == "placing"
            and self.output.stamp() == self.manifest.placing["output"]
            and not self.output.remote
        ):
            self._complete()
            return
        self._check_place()
        self.journal.load()
        self.journal.mend()
        for line in self.journal.damage:
            _log.warning("%s", line)

    def _complete(self) -> None:
        manifest = self.manifest
        manifest.status = "complete"
        manifest.published = {**manifest.placing, "output": self.output.stamp()}
        manifest.placing = {}
        self._lock.check()
        if self.incremental:
            self.journal.shelve()  # now, as the rows files of a complete job are swept
        manifest.save(self.output.folder)
        self.journal.sweep()

    def _journal(self) -> Journal:
        manifest = self.manifest
        return Journal(
            self.output.folder,
            manifest.generation,
            key=manifest.key,
            check=self._lock.check,
            keeps=self.incremental,
        )

    def _renew(
        self, job: Mapping[str, Any], earlier: Mapping[str, Any] | None, *, failed_again: bool
    ) -> bool:
        """Go on after the rows of the earlier input, if this input begins with them. Else begin the
        next generation, with no row done and all answers kept. Returns whether that was needed.

        Raises `JobMismatchError` if more than the input differs.
        """
        manifest = self.manifest
        changed = manifest.differences(job)
        if not changed and not (failed_again and self._has_failed):
            return False
        _check_renewable(self.output, manifest, job, self.journal.rows)
        self._check_place()
        goes_on = not failed_again and self._has_grown(job, earlier)
        if not goes_on:
            self.journal.shelve()
            manifest.generation += 1
        manifest.job = dict(job)
        manifest.published = {
            which: manifest.known(which) or []
            for which in {**manifest.published, **manifest.placing}
        }
        manifest.placing = {}
        manifest.result = {}
        manifest.status = "running"
        manifest.save(self.output.folder)
        if goes_on:
            self.taken_over = len(self.journal.done)
        else:
            self.journal = self._journal()
            self.journal.load()
            self.journal.mend()
        return True

    def _has_grown(self, job: Mapping[str, Any], earlier: Mapping[str, Any] | None) -> bool:
        """Whether the job is complete, the only change is that its input has more rows at the end,
        and its parts are sound. `earlier`: the fingerprint of the input that this one begins with.
        """
        before = self.manifest.job
        free = {name for name in {**before, **job} if name.startswith("input") or name == "limit"}
        journal, limit = self.journal, job.get("limit")
        if not self.complete or set(self.manifest.differences(job)) - free:
            return False
        if earlier != {name: before[name] for name in before if name.startswith("input")}:
            return False
        journal.load()
        done = len(journal.done)
        whole = done == self.manifest.result["rows"] and (limit is None or done <= limit)
        return whole and journal.is_sound

    @property
    def _has_failed(self) -> bool:
        pending = self.journal.pending.values()
        return bool(self.manifest.result.get("errors") or self.journal.errors) or any(
            record.outcome.error is not None for record in pending
        )

    def _check_place(self) -> None:
        """Raises `OutputError` if a file at the path of an output is not this job's."""
        placing = self.manifest.status == "placing"
        for which, place in self.output.places.items():
            if not place.is_own(self.manifest.known(which), placing=placing):
                raise outputs.in_the_way(place.path)

    def _strike_failed(self) -> None:
        if self.complete and self.journal.parts_mark != self.manifest.parts_checksum:
            raise JobError(
                f"the list of parts in {self.output.folder} is damaged, so the failed rows cannot"
                " be told apart; --fresh computes all of them again"
            )
        parts = self.journal.read_parts()
        failed_pending = any(
            record.outcome.error is not None for record in self.journal.pending.values()
        )
        if not failed_pending and not any(part.failed for part in parts):
            return
        manifest = self.manifest
        if self.complete:
            # The parts are gone, so the output itself becomes a part.
            written = segments(parts, keep_order=self.keep_order, without_failed=self.dead_letter)
            base = self.output.take_back(
                f"base-{manifest.generation + 1}",
                manifest.output_checksum,
                sum(segment.length for segment in written),
            )
            found = checksum_of(self.output.folder / base)
            parts = _as_base(
                parts, base, found, keep_order=self.keep_order, without_failed=self.dead_letter
            )
            if not parts:
                remove(self.output.folder / base)  # all rows failed, so it has none
            manifest.published["output"] = self.output.stamp()
            self._check_place()
        self.journal = self.journal.next_generation(
            replace(
                part,
                dropped=union(part.dropped, part.failed),
                failed=[],
                skipped=part.left_out,
                errors={},
            )
            for part in parts
        )
        manifest.generation = self.journal.generation
        manifest.status = "running"
        manifest.save(self.output.folder)
        self.journal.load()


def earlier_answers(
    output: Output, job: Mapping[str, Any], index: Path, *, failed: bool
) -> Kept | None:
    """The answers that an incremental job would keep; None if no row was done. Reads the job's
    state directory, and does not change it. `index` and `failed` are as for `Kept`. Raises what
    `State.open` would raise.
    """
    with writing(output.folder):
        manifest = manifests.load(output.folder)
        if manifest is None:
            _check_new(output)
            return None
        if manifest.status != "complete" and not any(
            path.stat().st_size
            for path in output.folder.iterdir()
            if path.name.startswith(("rows-", "kept-", "parts-"))
        ):
            return None
        _check_renewable(output, manifest, manifests.normal(job), 0)
        journal = Journal(output.folder, manifest.generation, key=manifest.key)
        return Kept(journal.answer_files(), journal.key, index, failed=failed)


def _check_renewable(output: Output, manifest: Manifest, job: Mapping[str, Any], rows: int) -> None:
    """Raise `JobMismatchError` if more than the input differs. `rows` is how many rows were done,
    unless the job is complete.
    """
    changed = manifest.differences(job)
    if all(manifests.is_free(name) for name in changed):
        return
    rows = manifest.result.get("rows") or rows
    manifest.require(
        {**job, **{n: manifest.job.get(n) for n in changed if manifests.is_free(n)}},
        output.path,
        "An incremental job keeps answers to the same requests: here all"
        f" {f'{rows:,} ' if rows else ''}rows would be computed again. --fresh does that; or give"
        " another output",
    )


def _check_new(output: Output) -> None:
    """Raise `ConfigError` or `JobError` if a new job would write over files or results."""
    if output.exists():
        raise ConfigError(
            f"{output.path} exists and is not the output of this job; --fresh replaces it",
            field="output",
        )
    letters = output.dead_letter
    if letters is not None and os.path.lexists(letters):
        raise ConfigError(
            f"{letters} exists and has no dead letters of this job; --fresh replaces it",
            field="dead_letter",
        )
    kept = output.folder.iterdir() if output.folder.is_dir() else ()
    begun = (LOCK_FILE, f"{manifests.FILE}.tmp")  # a job that was killed at once leaves these
    held = next((path.name for path in kept if path.name not in begun), None)
    if held is not None:
        raise JobError(
            f"{output.folder} holds {printable(held)} and no {manifests.FILE}, so it cannot be told"
            " of which job that is; move it away, or --fresh discards it"
        )


def _as_base(
    parts: list[Part], file: str, checksum: int, *, keep_order: bool, without_failed: bool
) -> list[Part]:
    """The parts of a complete job, with their places in its one output file."""
    absent = [part.absent(without_failed=without_failed) for part in parts]
    failed = [list(without(part.failed, gone)) for part, gone in zip(parts, absent, strict=True)]
    left_out = union(*(part.left_out for part in parts))  # done, but not in the file
    others = [Part(file, left_out, check=None, skipped=left_out, checksum=checksum)]
    if keep_order:
        live = union(*(without(part.runs, gone) for part, gone in zip(parts, absent, strict=True)))
        one = Part(file, live, failed=union(*failed), check=None, checksum=checksum)
        return [part for part in (one, *others) if part.runs]
    placed: list[Part] = []
    at = 0
    for part, gone, bad in zip(parts, absent, failed, strict=True):
        runs = list(without(part.runs, gone))
        placed.append(Part(file, runs, at=at, failed=bad, check=None, checksum=checksum))
        at += placed[-1].rows
    return placed + [part for part in others if part.runs]


def _begin(
    output: Output, job: Mapping[str, Any], *, fresh: bool, before: Manifest | None = None
) -> Manifest:
    """The manifest of a new job. Everything else in the state directory is removed.

    The files at the outputs' paths may be replaced if the manifest `before` says so, or with
    `fresh`. Raises `ConfigError` if they cannot be.
    """
    if fresh:
        output.check_replaceable()
    for path in output.folder.iterdir():
        if path.name not in (LOCK_FILE, manifests.FILE):  # the manifest is replaced atomically
            remove(path)
    manifest = Manifest(dict(job))
    if before is not None:
        manifest.published = {
            which: before.known(which) or [] for which in {**before.published, **before.placing}
        }
    elif fresh:
        manifest.published = _standing(output)
    manifest.save(output.folder)
    return manifest


def _standing(output: Output) -> dict[str, Stamp]:
    """The stamps of the outputs that have files at their paths now."""
    return {which: place.stamp() for which, place in output.places.items() if place.exists()}
