"""Remembers answers by the digest of their request, for inputs of any size in bounded memory.

The latest answers stay in memory, as bytes: their size is known, and whoever gets one gets it whole, whatever became of
the one before. Older ones move to a file, to be found by an index in SQLite; a small filter
in memory spares the look-up of digests that were never there. The file outlives a killed job: each record holds
its own digest, and the index is made anew from it.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import msgspec

from penstock.batch.rows import Outcome

if TYPE_CHECKING:
    import sqlite3

_IN_MEMORY = 16384
_IN_MEMORY_BYTES = 16 << 20
_SPILLED_AT_ONCE = 512
_FILTER_BITS = 1 << 26
_HEADER = struct.Struct("<16sI")

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Outcome).decode


class Answers:
    """Outcomes by request digest. `folder` is where answers spill to, made when first needed."""

    def __init__(self, folder: Path, *, in_memory: int = _IN_MEMORY) -> None:
        self._folder = folder
        self._limit = in_memory
        self._recent: dict[bytes, bytes] = {}
        self._bytes = 0
        self._spill: _Spill | None = None
        if (folder / _Spill.FILE).exists():
            self._spill = _Spill(folder)

    def get(self, digest: bytes) -> Outcome | None:
        """The answer to the request with this digest, if it was given: an object of the caller's own."""
        packed = self._recent.get(digest)
        if packed is None and self._spill is not None:
            packed = self._spill.get(digest)
        return None if packed is None else _decode(packed)

    def put(self, digest: bytes, outcome: Outcome) -> None:
        """Remember an answer, unless it holds values of types that only its maker knows."""
        try:
            packed = _encode(outcome)
        except (TypeError, ValueError, OverflowError):
            return
        self._bytes += len(packed) - len(self._recent.get(digest, b""))
        self._recent[digest] = packed
        if len(self._recent) > self._limit or self._bytes > _IN_MEMORY_BYTES:
            if self._spill is None:
                self._spill = _Spill(self._folder)
            oldest = list(self._recent)[: max(1, min(_SPILLED_AT_ONCE, len(self._recent) // 2))]
            leaving = [(digest, self._recent.pop(digest)) for digest in oldest]
            self._bytes -= sum(len(packed) for _, packed in leaving)
            self._spill.put(leaving)

    def close(self, *, discard: bool = False) -> None:
        """Close the files; `discard` removes them, once no row will ask again."""
        if self._spill is not None:
            self._spill.close()
        if discard:
            for name in (_Spill.FILE, _Spill.INDEX):
                (self._folder / name).unlink(missing_ok=True)


class _Spill:
    FILE = "answers.bin"
    INDEX = "answers.sqlite"

    def __init__(self, folder: Path) -> None:
        import sqlite3

        (folder / self.INDEX).unlink(missing_ok=True)
        self._file: BinaryIO = open(folder / self.FILE, "a+b", buffering=0)  # noqa: SIM115 (closed in close)
        # The index can be made anew at any time, so it needs neither a journal nor a lock of its own.
        self._index: sqlite3.Connection = sqlite3.connect(folder / self.INDEX, isolation_level=None)
        self._index.executescript(
            "PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; PRAGMA locking_mode=EXCLUSIVE; PRAGMA cache_size=-8192;"
            "CREATE TABLE answers (key INTEGER PRIMARY KEY, place INTEGER)"
        )
        self._filter = bytearray(_FILTER_BITS // 8)
        self._end = 0
        self._recover()

    def get(self, digest: bytes) -> bytes | None:
        if not self._maybe(digest):
            return None
        found = self._index.execute("SELECT place FROM answers WHERE key = ?", (_key(digest),)).fetchone()
        if found is None:
            return None
        stored, size = _HEADER.unpack(os.pread(self._file.fileno(), _HEADER.size, found[0]))
        if stored != digest:  # another digest with the same key: rare enough to compute again
            return None
        return os.pread(self._file.fileno(), size, found[0] + _HEADER.size)

    def put(self, answers: list[tuple[bytes, bytes]]) -> None:
        pieces: list[bytes] = []
        places: list[tuple[int, int]] = []
        end = self._end
        for digest, body in answers:
            pieces += (_HEADER.pack(digest, len(body)), body)
            places.append((_key(digest), end))
            end += _HEADER.size + len(body)
        data = b"".join(pieces)
        while data:
            data = data[self._file.write(data) :]
        self._end = end
        self._insert(places)

    def close(self) -> None:
        self._file.close()
        self._index.close()

    def _insert(self, places: list[tuple[int, int]]) -> None:
        self._index.execute("BEGIN")
        self._index.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?)", places)
        self._index.execute("COMMIT")
        for key, _ in places:
            for bit in _bits(key):
                self._filter[bit >> 3] |= 1 << (bit & 7)

    def _maybe(self, digest: bytes) -> bool:
        return all(self._filter[bit >> 3] >> (bit & 7) & 1 for bit in _bits(_key(digest)))

    def _recover(self) -> None:
        """Index what an earlier run left, up to the record that its end cut short."""
        size = os.fstat(self._file.fileno()).st_size
        places: list[tuple[int, int]] = []
        while self._end + _HEADER.size <= size:
            digest, length = _HEADER.unpack(os.pread(self._file.fileno(), _HEADER.size, self._end))
            if self._end + _HEADER.size + length > size:
                break
            places.append((_key(digest), self._end))
            self._end += _HEADER.size + length
        if places:
            self._insert(places)
        self._file.truncate(self._end)


def _key(digest: bytes) -> int:
    return int.from_bytes(digest[:8], "little", signed=True)


def _bits(key: int) -> tuple[int, int]:
    return key & (_FILTER_BITS - 1), key >> 32 & (_FILTER_BITS - 1)
