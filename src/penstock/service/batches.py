"""Batches: their state, which both APIs show, and which server runs each."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from typing import Any, Literal

import msgspec
from msgspec import Struct, field
from msgspec.structs import replace

from penstock.errors import NotStoredError, RequestError
from penstock.serve.store.transactions import in_transaction
from penstock.service.database import Connection, Row, StateStore, owned, page

Status = Literal[
    "validating",
    "failed",
    "in_progress",
    "finalizing",
    "completed",
    "expired",
    "cancelling",
    "cancelled",
]
RUNNING = ("validating", "in_progress", "finalizing", "cancelling")
"""The statuses of batches that have not ended."""
_IS_RUNNING = f"status IN ({', '.join(repr(one) for one in RUNNING)})"


class Fault(Struct, frozen=True, kw_only=True):
    """Why a batch failed. `line` counts from 1."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


class Tally(Struct, frozen=True, kw_only=True):
    """How many lines a batch has, and what became of them. Lines that no count but `total` has are
    not answered yet.
    """

    total: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    expired: int = 0


class Batch(Struct, frozen=True, kw_only=True):
    """A batch. Times are in Unix seconds. `usage` has the tokens of all its answers. While it is
    `paused`, no further line is begun.
    """

    id: str
    owner: str
    api: Literal["openai", "anthropic"]
    endpoint: str
    model: str
    input_file_id: str
    completion_window: str
    created_at: int
    expires_at: int
    status: Status = "validating"
    paused: bool = False
    metadata: dict[str, str] | None = None
    output_expires_in: float | None = None
    output_file_id: str | None = None
    error_file_id: str | None = None
    errors: list[Fault] = field(default_factory=list)
    counts: Tally = Tally()
    usage: dict[str, Any] | None = None
    in_progress_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    archived_at: int | None = None

    @property
    def ended_at(self) -> int | None:
        return self.completed_at or self.failed_at or self.expired_at or self.cancelled_at

    def body(self) -> dict[str, Any]:
        """The batch in the form of OpenAI's API."""
        errors = {"object": "list", "data": msgspec.to_builtins(self.errors)}
        times = ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling")
        counts = self.counts
        return {
            "id": self.id,
            "object": "batch",
            "endpoint": self.endpoint,
            "model": self.model or None,
            "errors": errors if self.errors else None,
            "input_file_id": self.input_file_id,
            "completion_window": self.completion_window,
            "status": self.status,
            "paused": self.paused,
            "output_file_id": self.output_file_id,
            "error_file_id": self.error_file_id,
            "created_at": self.created_at,
            "expires_at": self.expires_at,
            **{f"{name}_at": getattr(self, f"{name}_at") for name in (*times, "cancelled")},
            "request_counts": {
                "total": counts.total,
                "completed": counts.completed,
                "failed": counts.failed,
            },
            "usage": self.usage,
            "metadata": self.metadata,
        }


def batch_of(row: Row) -> Batch:
    """The batch in a row of the database."""
    return msgspec.json.decode(row["body"], type=Batch)


class BatchStore:
    """All batches. Methods with an `owner` see only the batches of that owner, or all for None;
    they raise `NotStoredError` for other batches.
    """

    def __init__(self, state: StateStore, *, lease_s: float) -> None:
        self._state = state
        self._lease_s = lease_s

    def _until(self, db: Connection) -> float:
        return self._state.now(db) + self._lease_s

    @in_transaction
    def add(self, db: Connection, batch: Batch) -> None:
        """Store a new batch, which this server runs."""
        db.execute(
            "INSERT INTO penstock_batch (id, owner, api, status, model, body, expires_at,"
            " server, leased_until) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                *(batch.id, batch.owner, batch.api, batch.status, batch.model),
                *(_encoded(batch), batch.expires_at, self._state.server, self._until(db)),
            ),
        )

    @in_transaction
    def get(self, db: Connection, owner: str | None, id: str, api: str | None = None) -> Batch:
        return batch_of(_row(db, owner, id, api))

    async def page(
        self, owner: str | None, api: str, *, limit: int, after: str = "", before: str = ""
    ) -> tuple[list[Batch], bool]:
        """A page of batches, the newest first, and whether there are more."""
        mine, parameters = owned(owner)
        work = page(
            "penstock_batch",
            f"api = ?{mine}",
            (api, *parameters),
            limit,
            ascending=False,
            after=after,
            before=before,
        )
        rows = await self._state.run(work)
        found = [batch_of(row) for row in rows[:limit]]
        return found[::-1] if before else found, len(rows) > limit

    @in_transaction
    def change(self, db: Connection, id: str, change: Callable[[Batch], Batch]) -> Batch:
        """Apply `change` to a batch that this server runs, store the result and return it. Raises
        `NotStoredError` if another server runs the batch by now, or it has ended.
        """
        row = _row(db, None, id)
        if row["server"] != self._state.server or row["status"] not in RUNNING:
            raise NotStoredError(f"this server does not run '{id}' any more", param="batch_id")
        return _store(db, change(batch_of(row)))

    @in_transaction
    def cancel(self, db: Connection, owner: str | None, id: str, api: str) -> Batch:
        """Begin to cancel a batch; a second call changes nothing. Raises `RequestError` if it
        has ended.
        """
        batch = batch_of(_row(db, owner, id, api))
        if batch.status not in RUNNING:
            if api == "anthropic":
                return batch
            why = f"the batch is {batch.status}, and cannot be cancelled"
            raise RequestError(why, status=409)
        if batch.status in ("cancelling", "finalizing"):
            return batch
        return _store(db, replace(batch, status="cancelling", cancelling_at=int(time.time())))

    @in_transaction
    def pause(self, db: Connection, owner: str | None, id: str, api: str, *, paused: bool) -> Batch:
        """Pause a batch or resume it. Raises `RequestError` for one that is ending or has ended."""
        batch = batch_of(_row(db, owner, id, api))
        if batch.status not in ("validating", "in_progress"):
            why = f"the batch is {batch.status}, and cannot be paused or resumed"
            raise RequestError(why, status=409)
        return _store(db, replace(batch, paused=paused))

    @in_transaction
    def delete(self, db: Connection, owner: str | None, id: str, api: str) -> Batch:
        """Forget a batch that has ended. Raises `RequestError` if it still runs."""
        batch = batch_of(_row(db, owner, id, api))
        if batch.status in RUNNING:
            raise RequestError("the batch has not ended: cancel it first", status=409)
        db.execute("DELETE FROM penstock_batch WHERE id = ?", (id,))
        return batch

    # Who runs what
    @in_transaction
    def free(self, db: Connection, running: Collection[str]) -> list[tuple[str, str]]:
        """The ids of batches that no server runs, the oldest first, each with the model that it
        needs; empty for a batch that only has to be ended. `running` are the batches that this
        server runs.
        """
        rows = db.execute(
            "SELECT id, model, status, expires_at, server, leased_until FROM penstock_batch"
            f" WHERE {_IS_RUNNING} ORDER BY seq"
        ).fetchall()
        now = self._state.now(db)
        return [
            (row["id"], "" if _only_ends(row) else row["model"])
            for row in rows
            if row["id"] not in running and not self._is_held(row, now)
        ]

    @in_transaction
    def claim(self, db: Connection, id: str) -> Batch | None:
        """Take over a batch that this server does not run; None if another server has it by now."""
        row = db.execute("SELECT * FROM penstock_batch WHERE id = ?", (id,)).fetchone()
        if row is None or row["status"] not in RUNNING:
            return None
        now = self._state.now(db)
        if self._is_held(row, now):
            return None
        db.execute(
            "UPDATE penstock_batch SET server = ?, leased_until = ? WHERE id = ?",
            (self._state.server, now + self._lease_s, id),
        )
        return batch_of(row)

    def _is_held(self, row: Row, now: float) -> bool:
        """Whether another server holds a batch."""
        if row["server"] in (None, self._state.server):
            return False
        lives = self._state.lives(row["server"])
        return bool(row["leased_until"] > now if lives is None else lives)

    @in_transaction
    def running(self, db: Connection) -> set[str]:
        """Ids of all batches that have not ended."""
        rows = db.execute(f"SELECT id FROM penstock_batch WHERE {_IS_RUNNING}").fetchall()
        return {row["id"] for row in rows}

    @in_transaction
    def renew(self, db: Connection, ids: list[str]) -> dict[str, Batch]:
        """Renew the leases of batches that this server runs. Returns the batches that it still has;
        others were deleted, or another server has them.
        """
        found: dict[str, Batch] = {}
        until = self._until(db)
        for id in ids:
            row = db.execute(
                "SELECT body, server FROM penstock_batch WHERE id = ?", (id,)
            ).fetchone()
            if row is None or row["server"] != self._state.server:
                continue
            found[id] = batch_of(row)
            db.execute("UPDATE penstock_batch SET leased_until = ? WHERE id = ?", (until, id))
        return found

    @in_transaction
    def release(self, db: Connection, ids: list[str]) -> None:
        """Let other servers run these batches."""
        for id in ids:
            db.execute(
                "UPDATE penstock_batch SET server = NULL, leased_until = 0 WHERE id = ?"
                " AND server = ?",
                (id, self._state.server),
            )

    @in_transaction
    def sweep(self, db: Connection, ttl_s: float) -> list[Batch]:
        """Forget batches that ended long ago. Returns them."""
        rows = db.execute(
            "SELECT body FROM penstock_batch WHERE ended_at <= ?", (int(time.time() - ttl_s),)
        ).fetchall()
        found = [batch_of(row) for row in rows]
        for batch in found:
            db.execute("DELETE FROM penstock_batch WHERE id = ?", (batch.id,))
        return found


def _row(db: Connection, owner: str | None, id: str, api: str | None = None) -> Any:
    mine, parameters = owned(owner)
    if api is not None:
        mine, parameters = f"{mine} AND api = ?", (*parameters, api)
    row = db.execute(
        f"SELECT status, body, server FROM penstock_batch WHERE id = ?{mine}", (id, *parameters)
    ).fetchone()
    if row is None:
        raise NotStoredError(f"there is no batch '{id[:100]}'", param="batch_id")
    return row


def _only_ends(row: Row) -> bool:
    """Whether a batch only has to be ended: no further line is to be answered."""
    return bool(row["status"] == "cancelling" or row["expires_at"] <= time.time())


def _store(db: Connection, batch: Batch) -> Batch:
    db.execute(
        "UPDATE penstock_batch SET status = ?, model = ?, body = ?, ended_at = ? WHERE id = ?",
        (batch.status, batch.model, _encoded(batch), batch.ended_at, batch.id),
    )
    return batch


def _encoded(batch: Batch) -> str:
    return msgspec.json.encode(batch).decode()
