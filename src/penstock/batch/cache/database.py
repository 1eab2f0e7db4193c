"""The answers of one directory, in one SQLite file that several jobs may use at once; and the
answers at a URL, of which such a file on this machine holds a copy.

A cache never fails a job. A damaged or locked answer is a miss; a file that SQLite cannot read is
set aside, and a new one begun; a full disk only ends the writing. Each answer has a checksum.

A URL has files of answers, which are never changed. A job fetches the files that it does not have
yet, and adds one file with the answers that it computed. So any number of jobs on any number of
machines need no lock. Any job removes files whose answers are all too old, and the oldest files if
all together are too large.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import sqlite3
import struct
import time
from collections.abc import Callable, Iterable, Iterator
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec

from penstock import env, private_files
from penstock.batch.read.files import filesystem
from penstock.batch.rows.row import Outcome
from penstock.batch.write.state_files import checksum
from penstock.errors import ConfigError

FILE = "answers.sqlite"
_AT_ONCE = 256
_SENT_AT_ONCE = 100_000
_SECONDS = 1.0
_HELD = 8192
_LOCK_SECONDS = 0.05
_TABLE = """
CREATE TABLE IF NOT EXISTS answers (
    key INTEGER PRIMARY KEY, made INTEGER, sent INTEGER, mark INTEGER, digest BLOB, answer BLOB
);
CREATE INDEX IF NOT EXISTS by_age ON answers (made);
CREATE INDEX IF NOT EXISTS unsent ON answers (made) WHERE sent = 0;
CREATE TABLE IF NOT EXISTS segments (name TEXT PRIMARY KEY);
"""
_log = logging.getLogger(__name__)
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Outcome).decode

T = TypeVar("T")


class Answer(NamedTuple):
    """`digest` names the request and the model (16 bytes), `made` is in Unix seconds."""

    digest: bytes
    made: int
    packed: bytes

    @property
    def mark(self) -> int:
        """A checksum, as a signed integer, which SQLite needs."""
        return checksum(self.packed, checksum(self.digest, self.made)) - (1 << 63)


class AnswerDatabase:
    """The answers in `folder`, which is made if it is missing. It keeps at most `most_bytes`, of
    which the oldest go first, and no answer older than `seconds`.

    Raises `ConfigError` if the folder cannot be made. The methods raise nothing.
    """

    def __init__(self, folder: Path, *, most_bytes: int, seconds: float) -> None:
        self._path = folder / FILE
        self._most_bytes = most_bytes
        self._seconds = seconds
        self._waiting: dict[bytes, Answer] = {}
        self._written = time.monotonic()
        self._writes = True
        self._connection: sqlite3.Connection | None = None
        try:
            private_files.make_folder(folder)
        except OSError as error:
            why = f"{folder} cannot be made: {error.strerror or error}"
            raise ConfigError(why, field="cache") from error
        self._guarded(self._open, None)
        self.trim()

    def get(self, digest: bytes) -> Outcome | None:
        """The answer to the request of this digest, if there is one."""
        waiting = self._waiting.get(digest)
        if waiting is not None:
            return _decode(waiting.packed)
        row = self._guarded(lambda: self._row(digest), None)
        if row is None:
            return None
        made, mark, stored, packed = row
        if stored != digest or made < time.time() - self._seconds:
            return None
        try:
            answer = Answer(digest, made, packed)
            return _decode(packed) if answer.mark == mark else None
        except (msgspec.DecodeError, TypeError, ValueError, OverflowError):  # damaged
            return None

    def put(self, digest: bytes, outcome: Outcome) -> None:
        """Keep an answer. It is written together with others; while answers come, within a
        second.
        """
        with contextlib.suppress(TypeError, ValueError, OverflowError):  # only its maker knows it
            self._waiting[digest] = Answer(digest, int(time.time()), _encode(outcome.stored()))
        due = time.monotonic() - self._written > _SECONDS
        if due or len(self._waiting) % _AT_ONCE == 0:
            self.write()

    def write(self) -> None:
        """Write the answers that wait, unless another job is writing."""
        self._written = time.monotonic()
        if self.add(self._waiting.values(), sent=False):
            self._waiting.clear()
            self.trim()
        elif len(self._waiting) > _HELD:
            self._waiting.clear()

    def add(self, answers: Iterable[Answer], *, sent: bool) -> bool:
        """Write answers. Returns False if they should be tried again."""
        rows = [
            (_key(one.digest), one.made, int(sent), one.mark, one.digest, one.packed)
            for one in answers
        ]

        def insert() -> bool:
            with self._transaction() as connection:
                connection.executemany(
                    "INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?, ?)", rows
                )
            return True

        return not rows or not self._writes or self._guarded(insert, False)

    def unsent(self) -> list[Answer]:
        """At most 100,000 answers that were written here and not sent yet."""

        def found() -> list[Answer]:
            rows = self._open().execute(
                "SELECT digest, made, answer FROM answers WHERE sent = 0 LIMIT ?", (_SENT_AT_ONCE,)
            )
            return [Answer(*row) for row in rows]

        return self._guarded(found, [])

    def mark_sent(self, answers: Iterable[Answer], segment: str) -> bool:
        """Note that these answers are in the segment of this name. Returns whether that
        succeeded.
        """

        def update() -> bool:
            with self._transaction() as connection:
                connection.executemany(
                    "UPDATE answers SET sent = 1 WHERE key = ?",
                    [(_key(one.digest),) for one in answers],
                )
                connection.execute("INSERT OR IGNORE INTO segments VALUES (?)", (segment,))
            return True

        return self._guarded(update, False)

    def segments(self) -> set[str]:
        """The segments whose answers are here."""

        def found() -> set[str]:
            return {name for (name,) in self._open().execute("SELECT name FROM segments")}

        return self._guarded(found, set())

    def trim(self) -> None:
        """Delete answers that are too old, and the oldest if all together are too large."""
        self._guarded(self._trim, None)

    def close(self) -> None:
        """Write the answers that wait, and close the file."""
        if self._waiting:
            self.write()
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _row(self, digest: bytes) -> tuple[int, int, bytes, bytes] | None:
        found: tuple[int, int, bytes, bytes] | None = (
            self._open()
            .execute(
                "SELECT made, mark, digest, answer FROM answers WHERE key = ?", (_key(digest),)
            )
            .fetchone()
        )
        return found

    def _trim(self) -> None:
        connection = self._open()
        expired = int(time.time() - self._seconds)
        if connection.execute(
            "SELECT 1 FROM answers WHERE made < ? LIMIT 1", (expired,)
        ).fetchone():
            with self._transaction():
                connection.execute("DELETE FROM answers WHERE made < ?", (expired,))
        pages, free, size = (
            connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("page_count", "freelist_count", "page_size")
        )
        used = (pages - free) * size
        if used > self._most_bytes:
            (rows,) = connection.execute("SELECT count(*) FROM answers").fetchone()
            surplus = int(rows * (1 - 0.9 * self._most_bytes / used)) + 1
            with self._transaction():
                connection.execute(
                    "DELETE FROM answers WHERE key IN (SELECT key FROM answers ORDER BY made LIMIT"
                    " ?)",
                    (surplus,),
                )

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            os.close(private_files.opener(self._path, os.O_WRONLY | os.O_CREAT))
            made = sqlite3.connect(
                self._path, timeout=_LOCK_SECONDS, isolation_level=None, check_same_thread=False
            )
            try:
                made.execute("PRAGMA journal_mode=WAL")
                # No job waits for the disk. A power cut may damage the file, which is then begun
                # anew.
                made.execute("PRAGMA synchronous=OFF")
                made.execute("PRAGMA cache_size=-16384")
                made.executescript(_TABLE)
            except sqlite3.Error:
                made.close()
                raise
            self._connection = made
        return self._connection

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        connection = self._open()
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield connection
            connection.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
            raise

    def _guarded(self, call: Callable[[], T], otherwise: T) -> T:
        try:
            return call()
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) and self._writes:
                _log.warning("The cache %s cannot be used fully: %s", self._path, error)
                self._writes = False
        except sqlite3.DatabaseError as error:
            if self._writes:
                _log.warning("The cache %s is damaged (%s), and begins anew", self._path, error)
            self._begin_anew()
        except OSError as error:
            if self._writes:
                _log.warning("The cache %s cannot be used: %s", self._path, error.strerror or error)
            self._writes = False
        return otherwise

    def _begin_anew(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()
        self._connection = None
        for end in ("", "-wal", "-shm"):
            with contextlib.suppress(OSError):
                os.unlink(f"{self._path}{end}")
        self._writes = self._writes and not os.path.lexists(self._path)


def _key(digest: bytes) -> int:
    return int.from_bytes(digest[:8], "little", signed=True)


_HEADER = struct.Struct("<16sqqI")  # digest, time, checksum, size
_MAGIC = b"penstock answers 1\n"


class RemoteAnswers:
    """The answers at `url`, with the methods of `AnswerDatabase`. Raises `InputError` or
    `MissingExtraError` for a URL that no library here can open; an outage is only a warning.
    """

    def __init__(self, url: str, *, most_bytes: int, seconds: float) -> None:
        self._fs, root = filesystem(url)
        self._root = root.rstrip("/")
        self._url = url
        self._most_bytes = most_bytes
        self._seconds = seconds
        name = blake2b(url.encode(errors="surrogateescape"), digest_size=12).hexdigest()
        folder = Path(env.cache_dir()) / "answers" / name
        self.database = AnswerDatabase(folder, most_bytes=most_bytes, seconds=seconds)
        with self._reached():
            self._fetch()
        self.get = self.database.get
        self.put = self.database.put

    def close(self) -> None:
        """Send the new answers to the URL."""
        self.database.write()
        with self._reached():
            while answers := self.database.unsent():
                name = f"answers-{int(time.time())}-{secrets.token_hex(8)}.bin"
                self._fs.makedirs(self._root, exist_ok=True)
                self._fs.pipe_file(f"{self._root}/{name}", _packed(answers))
                if not self.database.mark_sent(answers, name):
                    break  # another job writes: the next run sends them again, harmlessly
        self.database.close()

    def _fetch(self) -> None:
        self._fs.invalidate_cache()
        if not self._fs.exists(self._root):
            return
        found = {
            info["name"].rpartition("/")[2]: int(info["size"] or 0)
            for info in self._fs.ls(self._root, detail=True)
        }
        made = {name: stamp for name in found if (stamp := _time(name)) is not None}
        known = self.database.segments()
        total = 0
        for name in sorted(made, key=lambda name: -made[name]):
            total += found[name]
            with contextlib.suppress(FileNotFoundError):  # another job has removed it meanwhile
                if total > self._most_bytes or made[name] < time.time() - self._seconds:
                    self._fs.rm_file(f"{self._root}/{name}")
                elif name not in known:
                    answers = list(_unpacked(self._fs.cat_file(f"{self._root}/{name}")))
                    if self.database.add(answers, sent=True):  # else another job writes
                        self.database.mark_sent([], name)

    @contextlib.contextmanager
    def _reached(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # each file system has its own
            _log.warning("The cache %s cannot be reached: %s", self._url, error)


def _time(name: str) -> int | None:
    parts = name.removesuffix(".bin").split("-")
    if len(parts) != 3 or parts[0] != "answers" or not parts[1].isdigit():
        return None
    return int(parts[1])


def _packed(answers: list[Answer]) -> bytes:
    pieces = [_MAGIC]
    for one in answers:
        pieces += (_HEADER.pack(one.digest, one.made, one.mark, len(one.packed)), one.packed)
    return b"".join(pieces)


def _unpacked(data: bytes) -> Iterator[Answer]:
    """The answers of a file, up to the first damaged one."""
    place = len(_MAGIC) if data.startswith(_MAGIC) else len(data)
    while place + _HEADER.size <= len(data):
        digest, made, mark, size = _HEADER.unpack_from(data, place)
        place += _HEADER.size
        answer = Answer(digest, made, data[place : place + size])
        place += size
        if len(answer.packed) < size or made < 0 or answer.mark != mark:
            return
        yield answer
