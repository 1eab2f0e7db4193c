"""The list of a job's parts: which rows stand in which part files, and the files' checksums."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec
from msgspec import Struct

from penstock import private_files
from penstock.batch.state.durable_files import guarded, replace_file, sync_folder, write_all
from penstock.batch.state.ranges import Run, size
from penstock.batch.state.records import Records, checksum_of


class Part(Struct, omit_defaults=True):
    """One committed part: `runs` are its rows in written order, `at` the place of the first of them
    in `file`.

    `failed` are its error rows, `errors` their number by type, `skipped` those of them that are
    left out of the output, `dropped` rows that are no longer done. `check` is the sum of its rows'
    request digests, which tells whether a stream that is read again is the same; None if it is not
    known. `checksum` is of the file.
    """

    file: str
    runs: list[Run]
    at: int = 0
    failed: list[Run] = []
    errors: dict[str, int] = {}
    dropped: list[Run] = []
    check: int | None = 0
    skipped: list[Run] = []
    checksum: int = 0

    @property
    def rows(self) -> int:
        """Rows in the file, dropped ones included."""
        return size(self.runs)


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Part).decode


class PartList:
    """The parts of generation `generation` in the state directory `folder`.

    `write` is `os.write`, for tests to fail. All methods raise `OutputError`.
    """

    def __init__(
        self, folder: Path, generation: int, key: int, write: Callable[[int, bytes], int] = os.write
    ) -> None:
        self.path = folder / f"parts-{generation}.jsonl"
        self._folder = folder
        self._key = key
        self._write = write
        self._records = Records(self.path, key)

    @property
    def lost(self) -> int:
        """How many records were damaged or missing when it was read."""
        return self._records.lost

    @property
    def mark(self) -> int:
        """The checksum of the list itself: a complete job's does not change any more."""
        found: int = guarded(checksum_of, self.path) if self.path.exists() else 0
        return found

    def read(self) -> list[Part]:
        """The parts whose records are sound, first to last."""
        return [_decode(record) for record in self._records.read()] if self.path.exists() else []

    def cut(self) -> None:
        """Cut off a torn end, once it was read."""
        if self.path.exists():
            self._records.cut()

    def append(self, part: Part) -> None:
        """Commit a part. Its file must be on disk."""
        new = not self.path.exists()
        descriptor = guarded(
            private_files.opener, self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND
        )
        try:
            write_all(descriptor, self._records.seal(_encode(part)), self._write)
            guarded(os.fsync, descriptor)
        finally:
            os.close(descriptor)
        if new:
            sync_folder(self._folder)

    def replace(self, parts: Iterable[Part]) -> None:
        """Write the list anew, at once."""
        fresh = Records(self.path, self._key)
        replace_file(self.path, b"".join(fresh.seal(_encode(part)) for part in parts), self._write)
        self._records = fresh

    def damaged_files(self, parts: Iterable[Part]) -> dict[str, str]:
        """The parts' files that are not as they were written, and what is wrong with each."""
        bad: dict[str, str] = {}
        for part in {part.file: part for part in parts}.values():
            path = self._folder / part.file
            try:
                if checksum_of(path) != part.checksum:
                    bad[part.file] = "is damaged"
            except FileNotFoundError:
                bad[part.file] = "is gone"
            except OSError as error:
                bad[part.file] = f"cannot be read ({error.strerror or error})"
        return bad
