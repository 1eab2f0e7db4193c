"""Remembers answers by the digest of their request, for inputs of any size in bounded memory.

The latest answers stay in memory, as bytes: so their size is known, and each row gets an object of
its own, which it may change. Older answers move to a file, where an index in SQLite finds them; a
small filter in memory spares the look-up of digests that were never there. The file outlives a
killed job: each record holds its own digest and a checksum, and the index is rebuilt from it. A
damaged answer is computed again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import msgspec

from penstock import private_files
from penstock.batch.rows.row import Outcome
from penstock.batch.write.state_files import checksum
from penstock.errors import OutputError

if TYPE_CHECKING:
    import sqlite3

_IN_MEMORY = 16384
_IN_MEMORY_BYTES = 16 << 20
_SPILLED_AT_ONCE = 512
_FILTER_BITS = 1 << 26
_HEADER = struct.Struct("<16sQI")  # the digest, a checksum of digest and answer, the answer's size

_log = logging.getLogger(__name__)

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Outcome).decode


class AnswerCache:
    """Outcomes by request digest. Answers spill to `folder`, which is made when it is first needed.

    `key` is the job's: answers of other jobs are not taken. Raises `OutputError` if the disk fails.
    """

    def __init__(self, folder: Path, *, in_memory: int | None = None, key: int = 0) -> None:
        self._folder = folder
        self._key = key
        self._limit = in_memory or _IN_MEMORY
        self._recent: dict[bytes, bytes] = {}
        self._bytes = 0
        spilled = (folder / _Spill.FILE).exists()
        self._spill: _Spill | None = _Spill(folder, key) if spilled else None

    def get(self, digest: bytes) -> Outcome | None:
        """The answer to the request with this digest, if there is one: the caller's own object."""
        packed = self._recent.get(digest)
        if packed is None and self._spill is not None:
            packed = self._spill.get(digest)
        return None if packed is None else _decode(packed)

    def put(self, digest: bytes, outcome: Outcome) -> None:
        """Remember an answer, unless it holds values of a type that cannot be encoded."""
        try:
            packed = _encode(outcome.stored())
        except (TypeError, ValueError, OverflowError):
            return
        self._bytes += len(packed) - len(self._recent.get(digest, b""))
        self._recent[digest] = packed
        if len(self._recent) > self._limit or self._bytes > _IN_MEMORY_BYTES:
            if self._spill is None:
                self._spill = _Spill(self._folder, self._key)
            oldest = list(self._recent)[: max(1, min(_SPILLED_AT_ONCE, len(self._recent) // 2))]
            leaving = [(digest, self._recent.pop(digest)) for digest in oldest]
            self._bytes -= sum(len(packed) for _, packed in leaving)
            self._spill.put(leaving)

    def close(self) -> None:
        """Close the files. They stay, for the next run of the job."""
        if self._spill is not None:
            self._spill.close()


class _Spill:
    FILE = "answers.bin"
    INDEX = "answers.sqlite"

    def __init__(self, folder: Path, key: int) -> None:
        self._path = folder / self.FILE
        self._seed = key
        self._filter = bytearray(_FILTER_BITS // 8)
        self._end = 0
        with self._failing():
            self._index = new_index(
                folder / self.INDEX, "answers (key INTEGER PRIMARY KEY, place INTEGER)"
            )
            self._file: BinaryIO = open(  # noqa: SIM115
                self._path, "a+b", buffering=0, opener=private_files.opener
            )
            self._recover()

    def get(self, digest: bytes) -> bytes | None:
        if not all(self._filter[bit >> 3] >> (bit & 7) & 1 for bit in _bits(_key(digest))):
            return None  # the filter says that it was never there
        with self._failing():
            found = self._index.execute(
                "SELECT place FROM answers WHERE key = ?", (_key(digest),)
            ).fetchone()
            if found is None:
                return None
            stored, check, size = _HEADER.unpack(
                os.pread(self._file.fileno(), _HEADER.size, found[0])
            )
            if stored != digest:  # another digest with the same key, which is rare
                return None
            body = os.pread(self._file.fileno(), size, found[0] + _HEADER.size)
        return body if self._checksum(digest, body) == check else None

    def put(self, answers: list[tuple[bytes, bytes]]) -> None:
        pieces: list[bytes] = []
        places: list[tuple[int, int]] = []
        end = self._end
        for digest, body in answers:
            pieces += (_HEADER.pack(digest, self._checksum(digest, body), len(body)), body)
            places.append((_key(digest), end))
            end += _HEADER.size + len(body)
        data = b"".join(pieces)
        with self._failing():
            while data:
                data = data[self._file.write(data) :]
            self._end = end
            self._insert(places)

    def close(self) -> None:
        self._file.close()
        self._index.close()

    def _checksum(self, digest: bytes, body: bytes) -> int:
        return checksum(body, checksum(digest, self._seed))

    def _insert(self, places: list[tuple[int, int]]) -> None:
        self._index.execute("BEGIN")
        self._index.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?)", places)
        self._index.execute("COMMIT")
        for key, _ in places:
            for bit in _bits(key):
                self._filter[bit >> 3] |= 1 << (bit & 7)

    def _recover(self) -> None:
        """Index the records of an earlier run, up to one that is cut short or damaged."""
        size = os.fstat(self._file.fileno()).st_size
        places: list[tuple[int, int]] = []
        with open(self._path, "rb", buffering=1 << 18) as file:
            while len(head := file.read(_HEADER.size)) == _HEADER.size:
                digest, check, length = _HEADER.unpack(head)
                end = self._end + _HEADER.size + length
                body = file.read(length) if end <= size else b""
                if self._checksum(digest, body) != check:
                    if end <= size:
                        _log.warning(
                            "%s is damaged; its later answers are computed again", self._path
                        )
                    break
                places.append((_key(digest), self._end))
                self._end = end
        if places:
            self._insert(places)
        self._file.truncate(self._end)

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        import sqlite3

        try:
            yield
        except (OSError, sqlite3.Error, struct.error) as error:
            raise OutputError(
                f"{self._path}: {getattr(error, 'strerror', None) or error}"
            ) from error


def new_index(path: Path, table: str) -> sqlite3.Connection:
    """A new index, with this table. It can be rebuilt at any time, so it needs no journal and no
    lock.
    """
    import sqlite3

    path.unlink(missing_ok=True)
    os.close(private_files.opener(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
    index = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    index.executescript(
        "PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; PRAGMA locking_mode=EXCLUSIVE; PRAGMA"
        f" cache_size=-8192;CREATE TABLE {table}"
    )
    return index


def _key(digest: bytes) -> int:
    return int.from_bytes(digest[:8], "little", signed=True)


def _bits(key: int) -> tuple[int, int]:
    return key & (_FILTER_BITS - 1), key >> 32 & (_FILTER_BITS - 1)
