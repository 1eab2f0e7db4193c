"""Files of clients: what OpenAI's Files API knows of them, their content, and their end."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

from msgspec import Struct

from penstock.errors import NotStoredError, RequestError
from penstock.serve.config.settings import BatchSettings
from penstock.service.content import Content
from penstock.service.database import Connection, Row, StateStore, owned, page

PURPOSES = ("batch", "batch_output")
LARGEST_PAGE = 10_000
_INPUT = "batch_input"
"""The purpose of files that no client sees: the requests of Anthropic's batches."""


class StoredFile(Struct, frozen=True, kw_only=True):
    """A file. Times are in Unix seconds; `owner` is the hash of its maker's key."""

    id: str
    owner: str
    purpose: str
    filename: str
    bytes: int
    created_at: int
    expires_at: int | None

    def body(self) -> dict[str, Any]:
        """The file object that clients of OpenAI read."""
        return {
            "id": self.id,
            "object": "file",
            "bytes": self.bytes,
            "created_at": self.created_at,
            "expires_at": self.expires_at,
            "filename": self.filename,
            "purpose": self.purpose,
            "status": "processed",
            "status_details": None,
        }


def new_id(prefix: str) -> str:
    """An id that nobody guesses."""
    return f"{prefix}{uuid4().hex[:24]}"


def file_of(row: Row) -> StoredFile:
    """The file of a row."""
    return StoredFile(**{name: row[name] for name in StoredFile.__struct_fields__})


class FileStore:
    """The files of all clients. Methods with an `owner` see those of that owner only, or all for
    None; they raise `NotStoredError` for others.
    """

    def __init__(self, state: StateStore, content: Content, settings: BatchSettings) -> None:
        self.content = content
        self._state = state
        self._settings = settings

    async def add(
        self,
        made: Path,
        *,
        owner: str,
        purpose: str,
        filename: str,
        expires_in: float | None = None,
        id: str | None = None,
        replaces: int = 0,
    ) -> StoredFile:
        """Store a local file. One of the same id is replaced. Raises `RequestError` if it has no
        room; the parts that it `replaces` have so many bytes.
        """
        now = int(time.time())
        size = await asyncio.to_thread(os.path.getsize, made)
        file = StoredFile(
            id=id or new_id("file-"),
            owner=owner,
            purpose=purpose,
            filename=filename,
            bytes=size,
            created_at=now,
            expires_at=now + int(expires_in or self._settings.ttl_s),
        )
        if purpose != "batch_output":
            await self.check_room(file.bytes - replaces)
        await self.content.put(file.id, made)

        def insert(db: Connection) -> None:
            db.execute("DELETE FROM penstock_file WHERE id = ?", (file.id,))
            db.execute(
                "INSERT INTO penstock_file (id, owner, purpose, filename, bytes, created_at,"
                " expires_at) VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    *(file.id, file.owner, file.purpose, file.filename),
                    *(file.bytes, file.created_at, file.expires_at),
                ),
            )

        await self._state.run(insert)
        return file

    async def check_room(self, more: int) -> None:
        """Raise `RequestError` if files of so many more bytes would be too many."""
        await self._state.run(lambda db: self.require_room(db, more))

    def require_room(self, db: Connection, more: int) -> None:
        """As `check_room`, inside a transaction."""
        found = db.execute(
            "SELECT (SELECT COALESCE(SUM(bytes), 0) FROM penstock_file)"
            " + (SELECT COALESCE(SUM(bytes), 0) FROM penstock_part) AS total"
        )
        used, most = int(found.fetchone()["total"]), self._settings.max_bytes
        if used + more > most:
            full = RequestError(
                f"the server keeps {used} bytes of files and of parts of uploads, and may keep"
                f" {most}: delete some files, or cancel uploads"
            )
            full.status = 507
            raise full

    async def get(self, owner: str | None, id: str, *, param: str = "file_id") -> StoredFile:
        """The file that the client's `param` names."""
        mine, parameters = owned(owner)

        def find(db: Connection) -> Any:
            return db.execute(
                f"SELECT * FROM penstock_file WHERE id = ?{mine}", (id, *parameters)
            ).fetchone()

        row = await self._state.run(find)
        if row is None or (row["expires_at"] or time.time() + 1) <= time.time():
            raise NotStoredError(f"there is no file '{id[:100]}'", param=param)
        return file_of(row)

    async def page(
        self, owner: str | None, *, purpose: str | None, limit: int, ascending: bool, after: str
    ) -> tuple[list[StoredFile], bool]:
        """Files behind `after`, by the time of their making, and whether there are more."""
        where, parameters = owned(owner)
        where = f"purpose <> ?{where}"
        parameters = (_INPUT, *parameters)
        if purpose is not None:
            where, parameters = f"{where} AND purpose = ?", (*parameters, purpose)
        rows = await self._state.run(
            page("penstock_file", where, parameters, limit, ascending=ascending, after=after)
        )
        return [file_of(row) for row in rows[:limit]], len(rows) > limit

    async def delete(self, owner: str | None, id: str) -> None:
        await self.get(owner, id)
        await self.remove([id])

    async def remove(self, ids: list[str]) -> None:
        """Delete files, if they are there."""

        def forget(db: Connection) -> None:
            for id in ids:
                db.execute("DELETE FROM penstock_file WHERE id = ?", (id,))

        await self._state.run(forget)
        for id in ids:
            await self.content.delete(id)

    async def sweep(self) -> None:
        """Delete the files that have expired, with their content."""

        def find(db: Connection) -> list[str]:
            rows = db.execute(
                "SELECT id FROM penstock_file WHERE expires_at <= ?", (int(time.time()),)
            ).fetchall()
            return [row["id"] for row in rows]

        if expired := await self._state.run(find):
            await self.remove(expired)
