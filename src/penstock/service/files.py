"""Files of clients, as in OpenAI's Files API: their facts, their content and their expiry. And
uploads in parts, as in its Uploads API.
"""

from __future__ import annotations

import asyncio
import os
import time
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4
from weakref import WeakValueDictionary

import msgspec
from msgspec import Struct

from penstock.errors import NotStoredError, RequestError
from penstock.serve.config.settings import BatchSettings
from penstock.serve.store.transactions import in_transaction
from penstock.service.content import Content, left_over
from penstock.service.database import Connection, Row, StateStore, owned, page

PURPOSES = ("batch", "batch_output")
LARGEST_PAGE = 10_000
_INPUT = "batch_input"
"""The purpose of files that no client sees: the requests of Anthropic's batches."""


class StoredFile(Struct, frozen=True, kw_only=True):
    """A file. Times are in Unix seconds; `owner` is the hash of the key of its uploader."""

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
    """A random id that cannot be guessed."""
    return f"{prefix}{uuid4().hex[:24]}"


def file_of(row: Row) -> StoredFile:
    """The file in a row of the database."""
    return StoredFile(**{name: row[name] for name in StoredFile.__struct_fields__})


class FileStore:
    """The files of all clients. Methods with an `owner` see only the files of that owner, or all
    for None; they raise `NotStoredError` for other files.
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
        """Store a local file. A file of the same id is replaced. Raises `RequestError` if there is
        no room for it. `replaces` is the size of the upload's parts, which the file replaces.
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
        more = file.bytes - replaces if purpose != "batch_output" else None
        if more is not None:
            await self.check_room(more)
        await self.content.put(file.id, made)

        def insert(db: Connection) -> None:
            if more is not None:  # other files may have come meanwhile
                self.require_room(db, more)
            db.execute("DELETE FROM penstock_file WHERE id = ?", (file.id,))
            db.execute(
                "INSERT INTO penstock_file (id, owner, purpose, filename, bytes, created_at,"
                " expires_at) VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    *(file.id, file.owner, file.purpose, file.filename),
                    *(file.bytes, file.created_at, file.expires_at),
                ),
            )

        try:
            await self._state.run(insert)
        except RequestError:
            await self.content.delete(file.id)
            raise
        return file

    async def check_room(self, more: int) -> None:
        """Raise `RequestError` if there is no room for files of `more` bytes."""
        await self._state.run(lambda db: self.require_room(db, more))

    def require_room(self, db: Connection, more: int) -> None:
        """As `check_room`, inside a transaction."""
        found = db.execute(
            "SELECT (SELECT COALESCE(SUM(bytes), 0) FROM penstock_file)"
            " + (SELECT COALESCE(SUM(bytes), 0) FROM penstock_part) AS total"
        )
        used, most = int(found.fetchone()["total"]), self._settings.max_bytes
        if used + more > most:
            raise RequestError(
                f"the server keeps {used} bytes of files and of parts of uploads, and may keep"
                f" {most}: delete some files, or cancel uploads",
                status=507,
            )

    @in_transaction
    def get(
        self, db: Connection, owner: str | None, id: str, *, param: str = "file_id"
    ) -> StoredFile:
        """The file that the client's `param` names."""
        mine, parameters = owned(owner)
        row = db.execute(
            f"SELECT * FROM penstock_file WHERE id = ?{mine}", (id, *parameters)
        ).fetchone()
        if row is None or (row["expires_at"] or time.time() + 1) <= time.time():
            raise NotStoredError(f"there is no file '{id[:100]}'", param=param)
        return file_of(row)

    async def page(
        self, owner: str | None, *, purpose: str | None, limit: int, ascending: bool, after: str
    ) -> tuple[list[StoredFile], bool]:
        """Files after the id `after`, by the time of their upload, and whether there are more."""
        where, parameters = owned(owner)
        where = f"purpose <> ? AND (expires_at IS NULL OR expires_at > ?){where}"
        values: tuple[Any, ...] = (_INPUT, int(time.time()), *parameters)
        if purpose is not None:
            where, values = f"{where} AND purpose = ?", (*values, purpose)
        rows = await self._state.run(
            page("penstock_file", where, values, limit, ascending=ascending, after=after)
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
        if expired := await self._state.run(partial(_expired, "penstock_file")):
            await self.remove(expired)


def _expired(table: str, db: Connection) -> list[str]:
    """The ids of rows that have expired."""
    sql = f"SELECT id FROM {table} WHERE expires_at <= ?"
    return [row["id"] for row in db.execute(sql, (int(time.time()),)).fetchall()]


UPLOAD_S = 3600
"""Seconds for which an upload waits for its parts."""
_COLUMNS = "id, owner, status, body, expires_at"
_HIDDEN = ("expires_in", "part_ids")
"""Fields of a stored upload that its client does not see."""


class UploadStore:
    """The uploads of all clients. `folder` has their content while it is put together. Methods with
    an `owner` see only the uploads of that owner, or all for None; they raise `NotStoredError` for
    other uploads.
    """

    def __init__(
        self, state: StateStore, files: FileStore, folder: Path, settings: BatchSettings
    ) -> None:
        self._state = state
        self._files = files
        self._folder = folder
        self._settings = settings
        self._completing: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def add(
        self, *, owner: str, filename: str, purpose: str, size: int, expires_in: float | None
    ) -> dict[str, Any]:
        """Begin an upload of `size` bytes. Raises `RequestError` if there is no room for it."""
        await self._files.check_room(size)
        now = int(time.time())
        body = {
            "id": new_id("upload_"),
            "object": "upload",
            "bytes": size,
            "created_at": now,
            "filename": filename,
            "purpose": purpose,
            "status": "pending",
            "expires_at": now + UPLOAD_S,
            "file": None,
            "expires_in": expires_in,
        }

        def insert(db: Connection) -> None:
            db.execute(
                f"INSERT INTO penstock_upload ({_COLUMNS}) VALUES (?, ?, ?, ?, ?)",
                (body["id"], owner, "pending", _encoded(body), body["expires_at"]),
            )

        await self._state.run(insert)
        return shown(body)

    async def add_part(self, owner: str | None, upload: str, made: Path) -> dict[str, Any]:
        """Store a part, a local file. Raises `RequestError` if the upload gets too large: parts
        that were sent again, as their answer was lost, count up to the upload's size.
        """
        id = new_id("part_")
        size = await asyncio.to_thread(os.path.getsize, made)
        await self._files.content.put(id, made)

        def insert(db: Connection) -> None:
            _, body = _pending(db, owner, upload)
            found = db.execute(
                "SELECT COALESCE(SUM(bytes), 0) AS total FROM penstock_part WHERE upload = ?",
                (upload,),
            ).fetchone()
            if size > body["bytes"] or found["total"] + size > 2 * body["bytes"]:
                raise RequestError(
                    f"the parts have more than the {body['bytes']} bytes of the upload",
                    param="data",
                )
            self._files.require_room(db, size)
            db.execute(
                "INSERT INTO penstock_part (id, upload, bytes) VALUES (?, ?, ?)",
                (id, upload, size),
            )

        try:
            await self._state.run(insert)
        except BaseException:  # which leaves open whether the row is there
            await self._forget_part(id)
            raise
        return {
            "id": id,
            "object": "upload.part",
            "created_at": int(time.time()),
            "upload_id": upload,
        }

    async def complete(
        self, owner: str | None, id: str, parts: list[str], md5: str | None
    ) -> dict[str, Any]:
        """Join the parts, in this order, to a file. A client that lost the answer may ask again.
        Raises `RequestError`.
        """
        async with self._completing.setdefault(id, asyncio.Lock()):
            return await self._complete(owner, id, parts, md5)

    async def _complete(
        self, owner: str | None, id: str, parts: list[str], md5: str | None
    ) -> dict[str, Any]:
        def find(db: Connection) -> tuple[str, dict[str, Any], dict[str, int]]:
            maker, body = _found(db, owner, id)
            if body.get("part_ids") != parts:  # else the parts are joined already
                _check_pending(body)
            rows = db.execute(
                "SELECT id, bytes FROM penstock_part WHERE upload = ?", (id,)
            ).fetchall()
            return maker, body, {row["id"]: row["bytes"] for row in rows}

        maker, body, known = await self._state.run(find)
        if body["status"] == "completed":
            return shown(body)
        for part in parts:
            if part not in known:
                raise RequestError(f"the upload has no part '{part[:100]}'", param="part_ids")
        size = sum(known[part] for part in parts)
        if size != body["bytes"]:
            raise RequestError(
                f"the parts have {size} bytes, and the upload {body['bytes']}", param="part_ids"
            )
        # A name of its own: another ingress may join the same parts at the same time.
        made = self._folder / f"upload-{uuid4().hex}"
        try:
            joined = await self._files.content.join(parts, made)
            if md5 is not None and joined != md5.lower():
                raise RequestError(f"the parts have another checksum: {joined}", param="md5")
            file = await self._files.add(
                made,
                owner=maker,
                purpose=body["purpose"],
                filename=body["filename"],
                expires_in=body["expires_in"],
                replaces=sum(known.values()),
            )
        finally:
            made.unlink(missing_ok=True)
        try:
            return await self._end(id, "completed", file, parts)
        except RequestError:  # the upload ended meanwhile, so no upload names the file
            await self._files.remove([file.id])
            raise

    async def cancel(self, owner: str | None, id: str) -> dict[str, Any]:
        """Forget the parts of an upload."""
        await self._state.run(lambda db: _pending(db, owner, id))
        return await self._end(id, "cancelled")

    async def sweep(self) -> None:
        """Forget uploads that have expired, and their parts."""
        for path in await asyncio.to_thread(left_over, self._folder):
            path.unlink(missing_ok=True)  # the server died while the part came
        for id in await self._state.run(partial(_expired, "penstock_upload")):
            await self._drop_parts(id)
            await self._state.run(
                lambda db, id=id: db.execute(  # type: ignore[misc]
                    "DELETE FROM penstock_upload WHERE id = ?", (id,)
                )
            )

    async def _end(
        self,
        id: str,
        status: str,
        file: StoredFile | None = None,
        parts: list[str] | None = None,
    ) -> dict[str, Any]:
        def end(db: Connection) -> dict[str, Any]:
            _, body = _pending(db, None, id)
            body["status"] = status
            body["part_ids"] = parts
            body["file"] = None if file is None else file.body()
            db.execute(
                "UPDATE penstock_upload SET status = ?, body = ? WHERE id = ?",
                (status, _encoded(body), id),
            )
            return body

        body = await self._state.run(end)
        await self._drop_parts(id)
        return shown(body)

    async def _forget_part(self, id: str) -> None:
        await self._state.run(
            lambda db: db.execute("DELETE FROM penstock_part WHERE id = ?", (id,))
        )
        await self._files.content.delete(id)

    async def _drop_parts(self, upload: str) -> None:
        def forget(db: Connection) -> list[str]:
            rows = db.execute("SELECT id FROM penstock_part WHERE upload = ?", (upload,)).fetchall()
            db.execute("DELETE FROM penstock_part WHERE upload = ?", (upload,))
            return [row["id"] for row in rows]

        for part in await self._state.run(forget):
            await self._files.content.delete(part)


def shown(body: dict[str, Any]) -> dict[str, Any]:
    """An upload in the form of OpenAI's API."""
    return {name: value for name, value in body.items() if name not in _HIDDEN}


def _pending(db: Connection, owner: str | None, id: str) -> tuple[str, dict[str, Any]]:
    maker, body = _found(db, owner, id)
    _check_pending(body)
    return maker, body


def _found(db: Connection, owner: str | None, id: str) -> tuple[str, dict[str, Any]]:
    mine, parameters = owned(owner)
    row = db.execute(
        f"SELECT owner, body FROM penstock_upload WHERE id = ?{mine}", (id, *parameters)
    ).fetchone()
    if row is None:
        raise NotStoredError(f"there is no upload '{id[:100]}'", param="upload_id")
    body: dict[str, Any] = msgspec.json.decode(row["body"])
    return row["owner"], body


def _check_pending(body: dict[str, Any]) -> None:
    status = body["status"]
    if status == "pending" and body["expires_at"] <= time.time():
        status = "expired"
    if status != "pending":
        raise RequestError(f"the upload is {status}", param="upload_id")


def _encoded(body: dict[str, Any]) -> str:
    return msgspec.json.encode(body).decode()
