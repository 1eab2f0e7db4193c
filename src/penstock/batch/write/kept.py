"""The outcomes of the earlier input of an incremental job, found by a row's key and request.

They are in rows files of the journal (`journal.py`), which were kept under another name when their
rows were in a part. An index in SQLite, rebuilt at each start, finds a record; the record's own
checksum says whether it is sound. A damaged outcome is computed again.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec
from msgspec import Struct

from penstock.batch.rows.dedupe import new_index
from penstock.batch.rows.row import Outcome
from penstock.batch.write.journal import Record
from penstock.batch.write.state_files import Records, guarded

INDEX = "kept.sqlite"
_MOST_OPEN = 64
_Place = tuple[int, int, int, int]  # mixed key, number of the file, offset, length


class _Head(Struct, array_like=True):
    """A record without its outcome."""

    index: int
    key: int
    outcome: msgspec.Raw
    row_key: int = 0


_decode = msgspec.json.Decoder(Record).decode
_decode_head = msgspec.json.Decoder(_Head).decode


class Kept:
    """The outcomes in `files` of the job with this key; each file comes with the name that it had.
    `failed`: rows that failed there count too. `index` is the path of the index, which `close`
    deletes.

    Raises `OutputError` if the disk fails.
    """

    def __init__(
        self, files: Iterable[tuple[Path, Path]], key: int, index: Path, *, failed: bool
    ) -> None:
        self._failed = failed
        self._files = [(path, Records(name, key)) for path, name in files]
        self._open: dict[int, int] = {}
        self._path = index
        self._index = new_index(
            self._path, "answers (key INTEGER PRIMARY KEY, file INTEGER, place INTEGER, size)"
        )
        for number, (path, _) in enumerate(self._files):
            self._insert(guarded(list[_Place], _places(path, number)))

    def get(self, row_key: int, key: int) -> Outcome | None:
        """The outcome of the row with the key `row_key`, if its request was the same: `key` is the
        start of the request's digest.
        """
        found = self._index.execute(
            "SELECT file, place, size FROM answers WHERE key = ?", (_mixed(row_key, key),)
        ).fetchone()
        if found is None:
            return None
        number, place, size = found
        line = guarded(os.pread, self._descriptor(number), size, place)
        body = self._files[number][1].sound(line)
        if body is None:
            return None
        record = _decode(body)
        if (record.row_key, record.key) != (row_key, key):
            return None
        return record.outcome if self._failed or record.outcome.error is None else None

    def close(self) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)
        self._index.close()
        self._path.unlink(missing_ok=True)

    def _insert(self, places: list[_Place]) -> None:
        self._index.execute("BEGIN")
        places.sort()  # of two places with the same key, the later one stays
        self._index.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?)", places)
        self._index.execute("COMMIT")

    def _descriptor(self, number: int) -> int:
        descriptor = self._open.get(number)
        if descriptor is None:
            if len(self._open) >= _MOST_OPEN:
                os.close(self._open.pop(next(iter(self._open))))
            path = self._files[number][0]
            descriptor = self._open[number] = guarded(os.open, path, os.O_RDONLY)
        return descriptor


def _places(path: Path, number: int) -> Iterator[_Place]:
    place = 0
    with open(path, "rb", buffering=1 << 18) as file:
        for line in file:
            body = Records.body(line)
            if body is not None:
                try:
                    head = _decode_head(body)
                except msgspec.DecodeError:
                    pass  # damaged
                else:
                    if head.key and head.row_key:
                        yield _mixed(head.row_key, head.key), number, place, len(line)
            place += len(line)


def _mixed(row_key: int, key: int) -> int:
    return (row_key ^ key * 0x9E3779B97F4A7C15) & 0x7FFFFFFFFFFFFFFF
