"""The journal of a job: which rows are finished, with what result, and in which part files they stand.

A state directory holds

    manifest.json          which job this is, and its generation g
    rows-g-n.jsonl         results of rows that are in no part yet, a line each, in the order they finished
    part-g-n.jsonl         output rows (.parquet where the output is Parquet)
    parts-g.jsonl          a line for each part: its rows in written order. Its last byte is what commits a part
    lock                   held by the process that runs the job

A row's line is written in the event loop's turn in which the row finished, so that a killed process loses
nothing that was finished before. Files are forced to disk only when a part is committed. After a part, rows
that it does not hold are copied to a new rows file before the old one is removed; whatever a crash leaves,
reading all rows files and leaving out the rows of committed parts gives the state. `--retry-failed` starts the
next generation: the same parts, failed rows struck out.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from penstock.batch.rows import Outcome
from penstock.batch.runs import RowSet, Run, size, union, without
from penstock.errors import OutputError


class Part(Struct, omit_defaults=True):
    """One committed part: `runs` are its rows in written order, `at` the place of the first of them in `file`.

    `failed` are its error rows, `errors` their number by type, `skipped` those of them that are left out of the
    output, `dropped` rows that are no longer done. `check` is the sum of its rows' request digests, which tells
    whether a stream that is read again is the same; None if it is not known.
    """

    file: str
    runs: list[Run]
    at: int = 0
    failed: list[Run] = []
    errors: dict[str, int] = {}
    dropped: list[Run] = []
    check: int | None = 0
    skipped: list[Run] = []

    @property
    def rows(self) -> int:
        """Rows in the file, dropped ones included."""
        return size(self.runs)


class Record(Struct, array_like=True):
    """One finished row, as journaled. `key` is the start of its request's digest; 0 for a row without a request."""

    index: int
    key: int
    outcome: Outcome


_encode_record = msgspec.json.Encoder().encode
_decode_record = msgspec.json.Decoder(Record).decode
_encode_part = msgspec.json.Encoder().encode
_decode_part = msgspec.json.Decoder(Part).decode


def digest_key(digest: bytes) -> int:
    """The part of a request digest that is journaled."""
    return int.from_bytes(digest[:7], "little")


class Journal:
    """The journal of generation `generation` in the state directory `folder`. `load` before anything else.

    `write` is `os.write`, for tests to fail. Writing raises `OutputError`.
    """

    def __init__(self, folder: Path, generation: int, write: Callable[[int, bytes], int] = os.write) -> None:
        self.folder = folder
        self.generation = generation
        self.pending: dict[int, Record] = {}
        self.done = RowSet()
        self.errors: dict[str, int] = {}
        self.check: int | None = 0
        self.parts = 0
        self._write = write
        self._number = 0
        self._descriptor = -1
        self._buffer: list[bytes] = []
        self._log = folder / f"parts-{generation}.jsonl"

    def load(self) -> None:
        """Read what earlier runs did: parts into `done`, rows in no part into `pending`. Repairs torn ends."""
        self._clean()
        committed: list[Run] = []
        for part in self.read_parts():
            committed = union(committed, without(part.runs, union(part.dropped)))
            for kind, count in part.errors.items():
                self.errors[kind] = self.errors.get(kind, 0) + count
            if part.dropped or part.check is None:
                self.check = None  # the sum holds rows that are not done any more
            elif self.check is not None:
                self.check = (self.check + part.check) % (1 << 64)
            self.parts += 1
        self.done = RowSet(committed)
        for path in self._rows_files():
            self._number = max(self._number, int(path.stem.rpartition("-")[2]) + 1)
            for line in _whole_lines(path):
                try:
                    record = _decode_record(line)
                except (msgspec.DecodeError, UnicodeDecodeError):
                    continue  # written in part when the machine, not the process, went down
                if record.index not in self.done:
                    self.pending[record.index] = record

    @property
    def is_empty(self) -> bool:
        """Whether no row was finished."""
        return not self.done.runs and not self.pending

    def read_parts(self) -> Iterator[Part]:
        """The committed parts, first to last."""
        if self._log.exists():
            for line in _whole_lines(self._log):
                yield _decode_part(line)

    # Rows
    def add(self, index: int, digest: bytes, outcome: Outcome) -> bool:
        """Note a finished row. Returns whether `flush` must be called to have it written."""
        first = not self._buffer
        self._buffer.append(_encode_record(Record(index, digest_key(digest), outcome)))
        return first

    def flush(self) -> None:
        """Write the rows noted since the last time."""
        if self._buffer:
            data = b"\n".join(self._buffer) + b"\n"
            self._buffer.clear()
            if self._descriptor < 0:
                self._descriptor = self._open()
            self._write_all(self._descriptor, data)

    def sync(self) -> None:
        """Force the rows to disk."""
        self.flush()
        if self._descriptor >= 0:
            _guarded(os.fsync, self._descriptor)

    def rotate(self, held: Iterable[tuple[int, bytes, Outcome]]) -> Callable[[Part], None]:
        """Begin a new rows file, as all rows but `held` and `pending` now stand in a finished part.

        Returns the function that commits that part: it may run in another thread, and removes the old rows
        files.
        """
        self.flush()
        old = self._rows_files()
        previous = self._descriptor
        kept = [_encode_record(Record(index, digest_key(digest), outcome)) for index, digest, outcome in held]
        kept += [_encode_record(record) for record in self.pending.values()]
        descriptor = self._descriptor = self._open()
        if kept:
            self._write_all(descriptor, b"\n".join(kept) + b"\n")

        def commit(part: Part) -> None:
            _guarded(os.fsync, descriptor)
            self._append_part(part)
            for path in old:
                path.unlink(missing_ok=True)
            if previous >= 0:
                os.close(previous)

        return commit

    def close(self) -> None:
        """Write what is noted and close."""
        try:
            self.flush()
        finally:
            if self._descriptor >= 0:
                os.close(self._descriptor)
                self._descriptor = -1

    # Generations
    def next_generation(self, parts: Iterable[Part]) -> Journal:
        """A journal in which `parts` are committed and pending rows without error are kept.

        It counts once the manifest names its generation; until then this one stays whole.
        """
        following = Journal(self.folder, self.generation + 1, self._write)
        following._clean(own=True)
        replace_file(following._log, b"".join(_encode_part(part) + b"\n" for part in parts), self._write)
        kept = [record for record in self.pending.values() if record.outcome.error is None]
        if kept:
            data = b"".join(_encode_record(record) + b"\n" for record in kept)
            replace_file(self.folder / f"rows-{following.generation}-0.jsonl", data, self._write)
        return following

    def discard_parts(self) -> None:
        """Remove what a complete job no longer needs: part files and rows files."""
        for path in self.folder.iterdir():
            if path.name.startswith(("part-", "rows-", "base-")):
                remove(path)

    def _clean(self, *, own: bool = False) -> None:
        """Remove the rows and parts files of other generations, or those of this one. Part files stay."""
        for path in [*self.folder.glob("rows-*.jsonl"), *self.folder.glob("parts-*.jsonl")]:
            if (int(path.stem.split("-")[1]) == self.generation) == own:
                path.unlink()

    def _rows_files(self) -> list[Path]:
        found = self.folder.glob(f"rows-{self.generation}-*.jsonl")
        return sorted(found, key=lambda path: int(path.stem.rpartition("-")[2]))

    def _open(self) -> int:
        path = self.folder / f"rows-{self.generation}-{self._number}.jsonl"
        self._number += 1
        descriptor: int = _guarded(os.open, path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        return descriptor

    def _append_part(self, part: Part) -> None:
        descriptor = _guarded(os.open, self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            self._write_all(descriptor, _encode_part(part) + b"\n")
            _guarded(os.fsync, descriptor)
        finally:
            os.close(descriptor)
        sync_folder(self.folder)

    def _write_all(self, descriptor: int, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[_guarded(self._write, descriptor, view) :]


def _whole_lines(path: Path) -> Iterator[bytes]:
    """The file's complete lines; a torn last line is cut off the file, so that what is appended starts a new one."""
    whole = 0
    with open(path, "rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                break
            whole += len(line)
            yield line
    if whole < path.stat().st_size:
        os.truncate(path, whole)


def replace_file(path: Path, data: bytes, write: Callable[[int, bytes], int] = os.write) -> None:
    """Write a whole file so that at any moment either the old or the new one is there. Raises `OutputError`."""
    temporary = path.with_name(path.name + ".tmp")
    descriptor = _guarded(os.open, temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        view = memoryview(data)
        while view:
            view = view[_guarded(write, descriptor, view) :]
        _guarded(os.fsync, descriptor)
    finally:
        os.close(descriptor)
    _guarded(os.replace, temporary, path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Force a directory's entries to disk."""
    descriptor = _guarded(os.open, folder, os.O_RDONLY)
    try:
        _guarded(os.fsync, descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Remove a file, or a directory with all it holds."""
    if path.is_dir():
        import shutil

        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _guarded(call: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return call(*arguments)
    except OSError as error:
        raise OutputError(f"the journal cannot be written: {error.strerror or error}") from error
