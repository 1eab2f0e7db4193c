"""Files of checked records, and checksums of whole files.

A record is a line `["checksum",NUMBER,RECORD]`. Its checksum covers the record, its number, the
file's name and the job's key, so that each line shows by itself whether it was changed, and where
it belongs: one that is repeated or moved does no harm, one that is missing leaves a gap, and one of
another file or job counts for nothing. A last line without its end was cut short by a crash: that
is no damage.
"""

from __future__ import annotations

import os
from pathlib import Path

import xxhash

from penstock.batch.state.durable_files import guarded

_HEAD = len(b'["0123456789abcdef",')
_BLOCK = 1 << 20

checksum = xxhash.xxh3_64_intdigest
"""Of bytes, with a seed."""


class Records:
    """The records of one file, written from its beginning, or on from where `read` has come to."""

    def __init__(self, path: Path, key: int) -> None:
        self.path = path
        self.lost = 0
        self._next = 0
        self._seed = checksum(os.fsencode(path.name), key)
        self._whole = 0

    def seal(self, record: bytes) -> bytes:
        """The line of the next record."""
        number = self._next
        self._next += 1
        return self._line(number, record)

    def read(self) -> list[bytes]:
        """The sound records in the order in which they were written. `lost` counts those that are
        damaged or missing.

        Raises `OutputError` if the file cannot be read.
        """
        found: dict[int, bytes] = {}
        damaged = 0
        self._whole = 0
        for line in guarded(self._lines):
            self._whole += len(line)
            digits, _, rest = line[_HEAD:].partition(b",")
            number = int(digits) if digits.isdigit() and len(digits) < 19 else -1
            record = rest[:-2]
            if number >= 0 and line == self._line(number, record):
                found[number] = record
            else:
                damaged += 1
        self._next = max(found, default=-1) + 1
        self.lost = max(damaged, self._next - len(found))
        return [found[number] for number in sorted(found)]

    def cut(self) -> None:
        """Cut off a torn last line, so that what is appended starts a new one."""
        if self._whole < guarded(os.path.getsize, self.path):
            guarded(os.truncate, self.path, self._whole)

    def _line(self, number: int, record: bytes) -> bytes:
        return b'["%016x",%d,%b]\n' % (checksum(record, self._seed ^ number), number, record)

    def _lines(self) -> list[bytes]:
        with open(self.path, "rb") as file:
            lines = file.readlines()
        if lines and not lines[-1].endswith(b"\n"):
            del lines[-1]
        return lines


def checksum_of(path: Path) -> int:
    """Of a file's content; of a directory, of the names and contents of its Parquet files. Raises
    `OSError`.
    """
    if path.is_dir():
        total = 0
        for file in sorted(path.glob("*.parquet")):
            total = checksum(os.fsencode(file.name), total ^ checksum_of(file))
        return total
    digest = xxhash.xxh3_64()
    with open(path, "rb", buffering=0) as content:
        block = memoryview(bytearray(_BLOCK))
        while size := content.readinto(block):
            digest.update(block[:size])
    return digest.intdigest()
