"""The database with the state of files and batches: one SQLite file, or a PostgreSQL database that
several ingresses share. Both take the same SQL, with `?` for parameters. Each piece of work is a
transaction, and two never run at the same time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, TypeVar

from penstock import lazy
from penstock.config import masked
from penstock.errors import ConfigError, RequestError, UnavailableError
from penstock.serve.store.database import Database, Lives, other_version

T = TypeVar("T")
VERSION = 1
_SERIAL = {"sqlite": "INTEGER PRIMARY KEY AUTOINCREMENT", "postgres": "BIGSERIAL PRIMARY KEY"}
_SCHEMA = """
CREATE TABLE penstock_file (
    seq {serial},
    id TEXT NOT NULL UNIQUE,
    owner TEXT NOT NULL,
    purpose TEXT NOT NULL,
    filename TEXT NOT NULL,
    bytes BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    expires_at BIGINT
);;
CREATE INDEX penstock_file_owner ON penstock_file (owner, seq);;
CREATE INDEX penstock_file_expires ON penstock_file (expires_at);;
CREATE TABLE penstock_upload (
    seq {serial},
    id TEXT NOT NULL UNIQUE,
    owner TEXT NOT NULL,
    status TEXT NOT NULL,           -- pending, completed, cancelled, expired
    body TEXT NOT NULL,             -- as clients read it, as JSON
    expires_at BIGINT NOT NULL
);;
CREATE TABLE penstock_part (
    seq {serial},
    id TEXT NOT NULL UNIQUE,
    upload TEXT NOT NULL,
    bytes BIGINT NOT NULL
);;
CREATE TABLE penstock_batch (
    seq {serial},
    id TEXT NOT NULL UNIQUE,
    owner TEXT NOT NULL,
    api TEXT NOT NULL,              -- openai or anthropic
    status TEXT NOT NULL,
    model TEXT NOT NULL,            -- of its first line
    body TEXT NOT NULL,             -- as a `Batch`, as JSON
    expires_at BIGINT NOT NULL,
    ended_at BIGINT,
    server TEXT,                    -- the ingress that runs it
    leased_until DOUBLE PRECISION NOT NULL DEFAULT 0
);;
CREATE INDEX penstock_batch_owner ON penstock_batch (owner, seq);;
CREATE INDEX penstock_batch_status ON penstock_batch (status)
"""
Row = Mapping[str, Any]


class Cursor(Protocol):
    """The rows that a statement gives."""

    def fetchone(self) -> Any: ...
    def fetchall(self) -> list[Any]: ...


class Connection(Protocol):
    """Runs statements inside a transaction. Rows give their columns by name."""

    def execute(self, sql: str, parameters: Sequence[Any] = ..., /) -> Cursor: ...


class StateStore(Protocol):
    """`run(work)` calls `work` with a connection, in a transaction that is undone if `work` raises.
    `lives` says whether a server that holds batches may still run; None: unknown. `now` is the time
    in Unix seconds, by one clock for all servers.
    """

    server: str

    async def run(self, work: Callable[[Connection], T]) -> T: ...
    def lives(self, server: str) -> bool | None: ...
    def now(self, db: Connection) -> float: ...
    def close(self) -> None: ...


def open_state(file: Path, url: str | None) -> StateStore:
    """The database at `url`, else in the `file`. Raises `ConfigError`."""
    return SqliteState(file) if url is None else PostgresState(url)


def owned(owner: str | None) -> tuple[str, tuple[str, ...]]:
    """The SQL condition that a row is the owner's, and its parameters. Owner None sees all rows."""
    return ("", ()) if owner is None else (" AND owner = ?", (owner,))


def page(
    table: str,
    where: str,
    parameters: tuple[Any, ...],
    limit: int,
    *,
    ascending: bool,
    after: str = "",
    before: str = "",
) -> Callable[[Connection], list[Any]]:
    """Work that returns up to `limit` + 1 rows in creation order. With `after`, rows after that
    id; with `before`, rows before it, nearest first. The work raises `RequestError` for an id that
    is not there.
    """

    def find(db: Connection) -> list[Any]:
        upwards = ascending != bool(before)
        bound, values = "", parameters
        if name := after or before:
            found = db.execute(f"SELECT seq FROM {table} WHERE id = ?", (name,)).fetchone()
            if found is None:
                param = "after" if after else "before"
                raise RequestError(f"there is no '{name[:100]}' to page by", param=param)
            bound = f" AND seq {'>' if upwards else '<'} ?"
            values = (*values, found["seq"])
        order = "ASC" if upwards else "DESC"
        return db.execute(
            f"SELECT * FROM {table} WHERE {where}{bound} ORDER BY seq {order} LIMIT ?",
            (*values, limit + 1),
        ).fetchall()

    return find


class SqliteState:
    """The state in a file of this machine, which several servers may use."""

    def __init__(self, path: Path) -> None:
        schema = _SCHEMA.format(serial=_SERIAL["sqlite"])
        self._database = Database(path, schema, VERSION, "path")
        self._lives = Lives(path)
        self.server = self._lives.hold()

    async def run(self, work: Callable[[Connection], T]) -> T:
        return await self._database.run(work)

    def lives(self, server: str) -> bool | None:
        return self._lives.lives(server)

    def now(self, db: Connection) -> float:
        return time.time()

    def close(self) -> None:
        self._database.close()
        self._lives.close()


class PostgresState:
    """The state in a PostgreSQL database. A lost connection is reopened, and the transaction is
    retried once, unless it was lost at the commit. Raises `ConfigError` for a database that cannot
    be used.
    """

    def __init__(self, url: str) -> None:
        self._psycopg: Any = lazy.require("psycopg", needed_by="A shared database")
        from uuid import uuid4

        self.server = uuid4().hex
        self._url = url
        self._connection: Any = None
        self._thread = ThreadPoolExecutor(1, "penstock-batches")
        try:
            self._run(self._prepare)
        except self._psycopg.Error as error:
            raise ConfigError(
                f"{masked(url)} cannot be used: {' '.join(str(error).split())}", field="database"
            ) from None

    async def run(self, work: Callable[[Connection], T]) -> T:
        try:
            result = asyncio.get_running_loop().run_in_executor(self._thread, self._run, work)
        except RuntimeError as error:  # it is closed
            raise UnavailableError(f"the database does not work: {error}") from error
        try:
            return await result
        except self._psycopg.Error as error:
            raise UnavailableError(f"the database does not work: {error}") from error

    def lives(self, server: str) -> bool | None:
        return True if server == self.server else None

    def now(self, db: Connection) -> float:
        found = db.execute("SELECT EXTRACT(EPOCH FROM clock_timestamp()) AS now").fetchone()
        return float(found["now"])

    def close(self) -> None:
        self._thread.shutdown()
        if self._connection is not None:
            self._connection.close()

    def _run(self, work: Callable[[Connection], T]) -> T:
        for attempt in range(2):
            if self._connection is None or self._connection.closed:
                rows: Any = self._psycopg.rows
                self._connection = self._psycopg.connect(
                    self._url, row_factory=rows.dict_row, connect_timeout=10
                )
            connection, done = self._connection, False
            try:
                with connection.transaction():
                    # One transaction at a time, as in SQLite, so that no other changes the rows
                    # that it has read.
                    connection.execute("SELECT pg_advisory_xact_lock(7316884)")
                    result = work(_Marked(connection))
                    done = True
                return result
            except self._psycopg.OperationalError:
                connection.close()
                if attempt or done:  # a transaction that was lost at the commit may be stored
                    raise
        raise AssertionError

    def _prepare(self, db: Connection) -> None:
        db.execute("CREATE TABLE IF NOT EXISTS penstock_version (version INTEGER NOT NULL)")
        found = db.execute("SELECT version FROM penstock_version").fetchone()
        if found is None:
            for statement in _SCHEMA.format(serial=_SERIAL["postgres"]).split(";;"):
                db.execute(statement)
            db.execute("INSERT INTO penstock_version VALUES (?)", (VERSION,))
        elif found["version"] != VERSION:
            raise ConfigError(other_version(found["version"], VERSION), field="database")


class _Marked:
    """A connection that takes `?` for parameters."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def execute(self, sql: str, parameters: Sequence[Any] = (), /) -> Cursor:
        # PostgreSQL's texts cannot hold NUL, and no statement of ours has a percent sign.
        values = [v.replace("\0", "\ufffd") if isinstance(v, str) else v for v in parameters]
        cursor: Cursor = self._connection.execute(sql.replace("?", "%s"), values)
        return cursor
