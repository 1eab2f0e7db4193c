"""The journal of a job: which rows are finished, their results, and the part files they are in.

A state directory holds

    manifest.json    which job this is, its key, and its generation g
    rows-g-n.jsonl   results of rows that are in no part yet, a record each, as they finished
    part-g-n.jsonl   output rows (.parquet where the output is Parquet)
    parts-g.jsonl    a record for each part: its rows in written order; its last byte commits a part
    base-g           a part: the output of a complete job whose failed rows are run again
    kept-g-n.jsonl   of an incremental job: rows files whose rows stand in parts (`kept.py`)
    answers.bin      answers for equal requests (`dedupe.py`)
    batches/         batches of the job at a provider (`provider/ledger.py`)
    cascade.json     what a sample taught a job with two models (`pipeline/cascade.py`)
    lock             held by the process that runs the job

A row's record is written in the event loop's turn in which the row finished, so that a killed
process loses nothing that was finished before. Files are forced to disk only when a part is
committed: first the part and the new rows file, then the record of the part. After a part, rows
that it does not hold are copied to a new rows file before the old one is removed; whatever a crash
leaves, reading all rows files and leaving out the rows of committed parts gives the state.
`--retry-failed` starts the next generation: the same parts, with the failed rows struck out.

Records and parts are checked when they are read (`state_files.py`). The rows of a damaged record or
part count as not done: they run again, and `damage` says so. A job is refused only if the whole
output of a finished job is damaged.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec
from msgspec import Struct

from penstock import private_files
from penstock.batch.rows.row import Outcome
from penstock.batch.write.parts import Part, PartList, RowSet, size, union, without
from penstock.batch.write.state_files import (
    Records,
    guarded,
    remove,
    replace_file,
    sync_folder,
    write_all,
)
from penstock.errors import JobError, OutputError
from penstock.observability import counted

_CHECK_SECONDS = 1.0
BATCHES = "batches"
CASCADE = "cascade.json"
_OURS = re.compile(
    r"(part|parts|rows|base|kept)-.*"
    r"|(final|failed|download|answers|kept|mode|batches)(\..*)?|.*\.tmp"
)
"""The names of the files that a job leaves in its folder. Other files there are not touched."""


class Record(Struct, array_like=True):
    """One finished row, as journaled. `key` is the start of its request's digest, 0 for a row
    without a request. `row_key` is the row's key in an incremental job, 0 in other jobs.
    """

    index: int
    key: int
    outcome: Outcome
    row_key: int = 0


_encode_record = msgspec.json.Encoder().encode
_decode_record = msgspec.json.Decoder(Record).decode


def _record(index: int, digest: bytes, outcome: Outcome, row_key: int) -> bytes:
    return _encode_record(Record(index, digest_key(digest), outcome.stored(), row_key))


def digest_key(digest: bytes) -> int:
    """The part of a request digest that is journaled."""
    return int.from_bytes(digest[:7], "little")


class Journal:
    """The journal of generation `generation` in the state directory `folder`. Call `load` first.

    `write` is `os.write`, so that tests can let it fail. `key` is the job's own; `check` raises if
    the job's lock is lost. `keeps`: the records of rows stay after a part has them, and the parts
    after the job is complete. Writing raises `OutputError`.
    """

    def __init__(
        self,
        folder: Path,
        generation: int,
        write: Callable[[int, bytes], int] = os.write,
        *,
        key: int = 0,
        check: Callable[[], None] = lambda: None,
        keeps: bool = False,
    ) -> None:
        self.folder = folder
        self.generation = generation
        self.pending: dict[int, Record] = {}
        self.done = RowSet()
        self.errors: dict[str, int] = {}
        self.check: int | None = 0
        self.left_out = 0
        self.parts = 0
        self.damage: list[str] = []
        self.key = key
        self._write = write
        self._keeps = keeps
        self._check_held = check
        self._checked = 0.0
        self._number = 0
        self._descriptor = -1
        self._broken = False
        self._buffer: list[bytes] = []
        self._list = PartList(folder, generation, key, write)
        self._rows = Records(folder, key)

    def load(self) -> None:
        """Read what earlier runs did: parts into `done`, rows in no part into `pending`. Repairs
        torn ends.

        Raises `JobError` if a row is in two parts.
        """
        self._clean()
        self.pending.clear()
        self.damage.clear()
        self._take_parts(self._list.read())
        self._list.cut()
        if self._list.lost:
            self.damage.append(
                f"{self._list.path} is damaged ({counted(self._list.lost, 'record')}); the rows of"
                " those parts run again"
            )
        taken = [*self._rows_files(), *self.folder.glob(f"kept-{self.generation}-*.jsonl")]
        self._number = max(self._number, *(_number(path) + 1 for path in taken), 0)
        for path in self._rows_files():
            rows = Records(path, self.key)
            for line in rows.read():
                record = _decode_record(line)
                if record.index not in self.done:
                    self.pending[record.index] = record
            if rows.lost:
                self.damage.append(
                    f"{path} is damaged ({counted(rows.lost, 'record')}); those rows run again"
                )

    def mend(self) -> None:
        """Compare the parts with their checksums, and drop those that are damaged or gone: their
        rows run again.

        Removes files that no part needs any more. Raises `JobError` if the damaged part is the
        output of a finished job.
        """
        parts = self._list.read()
        bad = self._list.damaged_files(parts)
        lost = sorted({part.file for part in parts if part.file in bad})
        bases = [path.name for path in self.folder.glob("base-*")]
        named = {part.file for part in parts}
        for name in [*bases, *lost]:
            if name.startswith("base-") and (name in bad or name not in named):
                raise _no_base(self.folder / name if name in bad else self._list.path)
        sound = [part for part in parts if part.file not in bad]
        if self._list.lost or lost:
            damage = self.damage + [
                f"{self.folder / part.file} {bad[part.file]}; its {counted(part.rows, 'row')} run"
                " again"
                for part in parts
                if part.file in bad
            ]
            self._list.replace(sound)
            self.load()
            self.damage = damage
        self.sweep({part.file for part in sound})

    @property
    def is_sound(self) -> bool:
        """Whether all committed parts are there as they were written."""
        return not (self._list.damaged_files(self._list.read()) or self._list.lost)

    def check_parts(self) -> None:
        """Raises `JobError` if a committed part is damaged."""
        parts = self._list.read()
        bad = self._list.damaged_files(parts)
        if bad or self._list.lost:
            name, why = next(iter(bad.items()), (self._list.path.name, "is damaged"))
            if name.startswith("base-"):
                raise _no_base(self.folder / name)
            raise JobError(
                f"{self.folder / name} {why}. Start the job again: it runs the rows again that were"
                " in it"
            )

    @property
    def is_empty(self) -> bool:
        """Whether no row was finished, no row is in a provider's batch, and no sample was asked."""
        asked = any((self.folder / name).exists() for name in (BATCHES, CASCADE))
        return not (self.done.runs or self.pending or asked)

    @property
    def rows(self) -> int:
        """How many rows were finished."""
        return len(self.done) + len(self.pending)

    @property
    def parts_mark(self) -> int:
        """The checksum of the list of parts, which changes no more when the job is complete."""
        return self._list.mark

    def read_parts(self) -> list[Part]:
        """The committed parts whose records are sound, first to last."""
        return self._list.read()

    # Rows
    def add(self, index: int, digest: bytes, outcome: Outcome, row_key: int = 0) -> bool:
        """Note a finished row. Returns whether the caller must call `flush` to write it."""
        first = not self._buffer
        self._buffer.append(_record(index, digest, outcome, row_key))
        return first

    def flush(self) -> None:
        """Write the rows noted since the last time."""
        if self._buffer and not self._broken:
            now = time.monotonic()
            if now - self._checked > _CHECK_SECONDS:
                self._check_held()
                self._checked = now
            if self._descriptor < 0:
                self._descriptor = self._open()
            self._write_rows(self._buffer)
            self._buffer.clear()

    def sync(self) -> None:
        """Force the rows to disk."""
        self.flush()
        if self._descriptor >= 0:
            guarded(os.fsync, self._descriptor)

    def rotate(self, waiting: Iterable[tuple[int, bytes, Outcome, int]]) -> Callable[[Part], None]:
        """Begin a new rows file: all rows except `waiting` and `pending` ones are in a finished
        part.

        Returns the function that commits that part: it may run in another thread, and removes or
        shelves the old rows files.
        """
        self._check_held()
        self.flush()
        old = self._rows_files()
        previous = self._descriptor
        kept = [
            _record(index, digest, outcome, row_key) for index, digest, outcome, row_key in waiting
        ]
        kept += [_encode_record(record) for record in self.pending.values()]
        descriptor = self._descriptor = self._open()
        if kept:
            self._write_rows(kept)

        def commit(part: Part) -> None:
            guarded(os.fsync, descriptor)
            sync_folder(self.folder)  # so that the part has its name before a record says so
            self._check_held()
            self._list.append(part)
            for path in old:
                guarded(_shelve if self._keeps else remove, path)
            if previous >= 0:
                os.close(previous)

        return commit

    def close(self) -> None:
        """Write the rows noted, and close."""
        try:
            self.flush()
        finally:
            if self._descriptor >= 0:
                os.close(self._descriptor)
                self._descriptor = -1

    # Generations
    def shelve(self) -> None:
        """Keep the records of rows that are in no part yet, for another generation."""
        for path in self._rows_files():
            guarded(_shelve, path)

    def kept_files(self) -> list[tuple[Path, Path]]:
        """The kept rows files, oldest first, with the names that they had."""
        found = [
            (tuple(map(int, path.stem.split("-")[1:])), path)
            for path in self.folder.glob("kept-*-*.jsonl")
        ]
        return [(path, path.with_name(f"rows{path.name[4:]}")) for _, path in sorted(found)]

    def earlier_files(self) -> list[tuple[Path, Path]]:
        """The `kept_files` that may have answers which are in no part: those of other generations,
        and this one's if parts of it were damaged.
        """
        own = f"kept-{self.generation}-"
        return [file for file in self.kept_files() if self.damage or own not in file[0].name]

    def answer_files(self) -> list[tuple[Path, Path]]:
        """The `kept_files`, and then the rows files that are not shelved yet."""
        return [*self.kept_files(), *((path, path) for path in self._rows_files())]

    def next_generation(self, parts: Iterable[Part]) -> Journal:
        """A journal in which `parts` are committed and pending rows without error are kept.

        It is in force once the manifest names its generation; until then this journal stays whole.
        """
        following = Journal(
            self.folder, self.generation + 1, self._write, key=self.key, check=self._check_held
        )
        following._clean(own=True)
        following._list.replace(parts)
        kept = [record for record in self.pending.values() if record.outcome.error is None]
        if kept:
            rows = Records(self.folder / f"rows-{following.generation}-0.jsonl", self.key)
            data = b"".join(rows.seal(_encode_record(record)) for record in kept)
            replace_file(rows.path, data, self._write)
        return following

    def sweep(self, parts: set[str] | None = None) -> None:
        """Remove files of earlier runs that are needed no more. A complete job keeps the list of
        parts; a complete incremental job also keeps the parts and its own kept rows. Another job
        keeps `parts` and all that is journaled or kept.
        """
        needed = {self._list.path.name}
        kept = [path.name for path, _ in self.kept_files()]
        if parts is None:
            # A complete job has copied the answers that it took from earlier generations.
            needed.update(name for name in kept if name.startswith(f"kept-{self.generation}-"))
            needed.update(part.file for part in self._list.read() if self._keeps)
        else:
            rows = (path.name for path in self._rows_files())
            needed |= {*parts, *kept, "answers.bin", BATCHES, *rows}
        for path in self.folder.iterdir():
            if _OURS.fullmatch(path.name) and path.name not in needed:
                guarded(remove, path)

    def _take_parts(self, parts: list[Part]) -> None:
        live = [list(without(part.runs, union(part.dropped))) for part in parts]
        self.done = RowSet(run for runs in live for run in runs)
        if len(self.done) != sum(map(size, live)):
            raise JobError(
                f"{self._list.path} is damaged: some rows are in two parts. Was the job run twice"
                " at a time? --fresh discards what was done"
            )
        self.errors = {}
        self.check = 0
        self.left_out = sum(size(part.left_out) for part in parts)
        for part in parts:
            for kind, count in part.errors.items():
                self.errors[kind] = self.errors.get(kind, 0) + count
            if part.dropped or part.check is None:
                self.check = None  # the sum has rows that are no longer done
            elif self.check is not None:
                self.check = (self.check + part.check) % (1 << 64)
        own = re.compile(rf"part-{self.generation}-(\d+)\..*")
        numbers = [int(found[1]) for part in parts if (found := own.fullmatch(part.file))]
        self.parts = max(numbers, default=-1) + 1

    def _clean(self, *, own: bool = False) -> None:
        """Remove the rows files and lists of parts of other generations; with `own` of this one.
        Part files stay.
        """
        for path in [*self.folder.glob("rows-*.jsonl"), *self.folder.glob("parts-*.jsonl")]:
            if (path.stem.split("-")[1] == str(self.generation)) == own:
                guarded(remove, path)

    def _rows_files(self) -> list[Path]:
        found = re.compile(rf"rows-{self.generation}-\d+\.jsonl")
        return sorted(
            (path for path in self.folder.iterdir() if found.fullmatch(path.name)), key=_number
        )

    def _open(self) -> int:
        rows = Records(self.folder / f"rows-{self.generation}-{self._number}.jsonl", self.key)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_EXCL
        descriptor: int = guarded(private_files.opener, rows.path, flags)
        self._number += 1
        self._rows = rows
        return descriptor

    def _write_rows(self, records: list[bytes]) -> None:
        try:
            write_all(self._descriptor, b"".join(map(self._rows.seal, records)), self._write)
        except OutputError:
            self._broken = True  # what came after a torn record would look damaged
            raise


def _no_base(path: Path) -> JobError:
    return JobError(
        f"{path} is damaged or was changed, so the rows that were done before cannot be told apart;"
        " --fresh computes all of them again"
    )


def _shelve(path: Path) -> None:
    os.replace(path, path.with_name(f"kept{path.name[4:]}"))


def _number(path: Path) -> int:
    return int(path.stem.rpartition("-")[2])
