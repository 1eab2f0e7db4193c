"""One SQLite file, used by a thread of its own, so that the event loop never waits for the disk.
`Lives` knows which of the servers that share the file still run.
"""

from __future__ import annotations

import asyncio
import os
import re
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

from penstock import private_files
from penstock.errors import ConfigError, UnavailableError

T = TypeVar("T")
BUSY_S = 10.0
"""How long a transaction waits for another process's."""
_TABLES = re.compile(r"CREATE TABLE (\w+)")
PRAGMAS = ("journal_mode = WAL", "synchronous = NORMAL", "secure_delete = ON", "foreign_keys = ON")


class Database:
    """`run(work)` calls `work` with the connection, in a transaction.

    Several processes of one machine may use a file at once (write-ahead log). What a transaction
    has written survives the death of the process. Deleted content is overwritten with zeros.

    `schema` makes the tables of a new file, and `version` is its number, at least 1. The file gets
    mode 0600, a new folder 0700. Raises `ConfigError` for a file that cannot be used; `field` is
    the setting that says where it is.
    """

    def __init__(self, path: Path, schema: str, version: int, field: str) -> None:
        self.path = path
        self._field = field
        self._thread = ThreadPoolExecutor(1, "penstock-store")
        try:
            private_files.make_folder(path.parent)
            if path.exists():
                self._check_ours(schema, version)
            os.close(private_files.opener(path, os.O_RDWR | os.O_CREAT))
            self._connection = sqlite3.connect(
                path, timeout=BUSY_S, isolation_level=None, check_same_thread=False
            )
        except (OSError, sqlite3.Error) as error:
            raise ConfigError(f"{path} cannot be used: {error}", field=field) from error
        try:
            self._prepare(schema, version)
        except BaseException:
            self._connection.close()
            raise

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """The result of `work`. What it wrote is undone if it raises. Raises `UnavailableError` if
        the file cannot be read or written.
        """
        try:
            return await asyncio.get_running_loop().run_in_executor(
                self._thread, self.run_now, work
            )
        except (sqlite3.Error, OSError, RuntimeError) as error:  # RuntimeError: it is closed
            raise UnavailableError(f"the store does not work: {error}") from error

    def close(self) -> None:
        """Finish the transactions under way, and close the file."""
        self._thread.shutdown()
        self._connection.close()

    def run_now(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """As `run`, in the calling thread, before any `run`. Raises SQLite's own errors."""
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            result = work(self._connection)
            self._connection.execute("COMMIT")
            return result
        except BaseException:
            if self._connection.in_transaction:  # SQLite itself ends it when the disk is full
                self._connection.execute("ROLLBACK")
            raise

    def _prepare(self, schema: str, version: int) -> None:
        """Set the connection up, and make the tables of a new file."""
        try:
            self._connection.row_factory = sqlite3.Row
            for pragma in PRAGMAS:
                self._connection.execute(f"PRAGMA {pragma}")
            self.run_now(lambda db: _make_tables(db, schema, version))
        except sqlite3.Error as error:
            why = f"{self.path} cannot be used: {error}"
            raise ConfigError(why, field=self._field) from error

    def _check_ours(self, schema: str, version: int) -> None:
        """Raise `ConfigError` for another program's or version's file, which stays as it is."""
        uri = f"{self.path.absolute().as_uri()}?mode=rw"
        with closing(sqlite3.connect(uri, BUSY_S, uri=True)) as db:
            (found,) = db.execute("PRAGMA user_version").fetchone()
            tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master")}
        if not found and not tables:
            return
        if found not in (0, version):
            raise ConfigError(f"{self.path} {other_version(found, version)}", field=self._field)
        if not tables.issuperset(_TABLES.findall(schema)):
            why = f"{self.path} is another program's database: name another place"
            raise ConfigError(why, field=self._field)


def other_version(found: int, version: int) -> str:
    """Why tables of the version `found` are not used, and what to do."""
    return (
        f"has version {found} of the tables, and this Penstock reads version {version}: start the"
        " Penstock that made them, or name another place"
    )


def _make_tables(db: sqlite3.Connection, schema: str, version: int) -> None:
    """Make the tables of a new file."""
    (found,) = db.execute("PRAGMA user_version").fetchone()
    if found == 0:
        for statement in schema.split(";;"):
            db.execute(statement)
        db.execute(f"PRAGMA user_version = {version}")


class Lives:
    """Each server holds a lock on a small file of its own beside `path`; the kernel frees it when
    the server ends, however it ends.
    """

    def __init__(self, path: Path) -> None:
        self.own = uuid4().hex
        self._path = path
        self._descriptor: int | None = None

    def hold(self) -> str:
        """Take the own lock, if not yet held. Returns the name of this server. Raises `OSError`."""
        if self._descriptor is None:
            file = self._file(self.own)
            descriptor = private_files.opener(file, os.O_RDWR | os.O_CREAT)
            try:
                private_files.lock(descriptor)
            except OSError:  # others must not take this server for a dead one later
                os.close(descriptor)
                file.unlink(missing_ok=True)
                raise
            self._descriptor = descriptor
        return self.own

    def lives(self, server: str) -> bool:
        """Whether a server lives. Removes the file of a dead one."""
        if server == self.own:
            return True
        file = self._file(server)
        try:
            descriptor = os.open(file, os.O_RDWR)
        except FileNotFoundError:
            return False
        try:
            if not private_files.lock(descriptor):
                return True
            file.unlink(missing_ok=True)
            return False
        finally:
            os.close(descriptor)

    def close(self) -> None:
        if self._descriptor is not None:
            self._file(self.own).unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = None

    def _file(self, server: str) -> Path:
        return self._path.with_name(f"{self._path.name}-server-{server}")
