"""A cache at a URL: files of answers there, which nobody changes, and a database of them here.

A job takes the files that it has not yet, and leaves what it computed as one more. So any number of
jobs on any number of machines need no lock. Files whose answers are all too old, and the oldest of
those that are too much, are removed by whoever comes.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import struct
import time
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path

from penstock import env
from penstock.batch.cache.database import Answer, AnswerDatabase
from penstock.batch.read.files import filesystem

_HEADER = struct.Struct("<16sqqI")  # digest, time, checksum, size
_MAGIC = b"penstock answers 1\n"
_log = logging.getLogger(__name__)


class RemoteAnswers:
    """The answers at `url`, as those of a directory. Raises `InputError` or `MissingExtraError` for
    a URL that nothing here can open; an outage is a warning.
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
        """Leave what is new at the URL."""
        self.database.write()
        with self._reached():
            while answers := self.database.unsent():
                name = f"answers-{int(time.time())}-{secrets.token_hex(8)}.bin"
                self._fs.makedirs(self._root, exist_ok=True)
                self._fs.pipe_file(f"{self._root}/{name}", _packed(answers))
                if not self.database.mark_sent(answers, name):
                    break  # another job writes: sent again at the next run, which does no harm
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
    """The answers of a file, up to a damaged one."""
    place = len(_MAGIC) if data.startswith(_MAGIC) else len(data)
    while place + _HEADER.size <= len(data):
        digest, made, mark, size = _HEADER.unpack_from(data, place)
        place += _HEADER.size
        answer = Answer(digest, made, data[place : place + size])
        place += size
        if len(answer.packed) < size or made < 0 or answer.mark != mark:
            return
        yield answer
