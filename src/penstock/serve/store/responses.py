"""Stored responses and conversations, each for the caller that made it."""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import msgspec
from msgspec import Struct

from penstock.errors import NotStoredError, RequestError
from penstock.openai.responses_api import Item, items_of, with_new_id
from penstock.serve.config.settings import StoreSettings
from penstock.serve.store.tables import (
    SCHEMA,
    VERSION,
    body_of,
    chain_of,
    items_of_conversation,
    touch,
)
from penstock.serve.store.transactions import in_transaction

if TYPE_CHECKING:
    import sqlite3

RUNNING = ("queued", "in_progress")
CONTINUED = ("completed", "incomplete")
"""States of a response from which a conversation goes on."""
LOST = "the server that ran this response ended before it was complete"


class Turn(Struct, kw_only=True):
    """A response with what it answers: its own `input`, and what it continues (`previous`, or the
    first `upto` items of `conversation`).
    """

    id: str
    owner: str
    body: dict[str, Any]
    input: list[Item]
    previous: str | None = None
    conversation: str | None = None
    upto: int = 0


class StoredResponse(Struct):
    """A response as clients read it, and the events of one that ran in the background."""

    body: dict[str, Any]
    events: list[bytes]

    @property
    def status(self) -> str:
        return str(self.body["status"])


class ResponseStore:
    """Belongs to one ingress, which may share the file with others of the same machine.

    `owner` is the hash of a caller's key. What belongs to another one counts as missing. Methods
    raise `NotStoredError`, and `UnavailableError` if the file does not work. A background response
    whose server is dead becomes `failed` when somebody reads it, or a store opens the file.
    """

    def __init__(self, settings: StoreSettings, clock: Callable[[], float] = time.time) -> None:
        self.settings = settings
        self._clock = clock
        from penstock.serve.store.database import Database, Lives  # loads SQLite

        path = Path(settings.path).expanduser().absolute()
        self._lives = Lives(path)
        self._state = Database(path, SCHEMA, VERSION, "store")
        self.running: set[str] = set()
        """Responses that run in the background of this server."""
        self._state.run_now(self._make_room)

    def close(self) -> None:
        self._state.close()
        self._lives.close()

    # Responses
    @in_transaction
    def add(self, db: sqlite3.Connection, turn: Turn) -> None:
        """Store a finished response, and put its items into its conversation."""
        self._insert(db, turn, None)
        self._append_turn(db, turn.conversation, turn.input, turn.body)
        self._make_room(db)

    async def add_running(self, turn: Turn) -> None:
        """Store a response that this server runs in the background."""

        def work(db: sqlite3.Connection) -> None:
            self._insert(db, turn, self._lives.hold())
            self._make_room(db)

        self.running.add(turn.id)
        await self._state.run(work)

    @in_transaction
    def begin(self, db: sqlite3.Connection, id: str) -> None:
        """A queued response is in progress."""
        db.execute(
            "UPDATE object SET status = 'in_progress' WHERE id = ? AND status = 'queued'", (id,)
        )

    @in_transaction
    def finish(
        self, db: sqlite3.Connection, id: str, body: dict[str, Any], events: Sequence[bytes]
    ) -> None:
        """Store the end of a background response, unless it was cancelled or deleted."""
        self._end(db, id, body, events)
        self._make_room(db)

    @in_transaction
    def response(self, db: sqlite3.Connection, owner: str, id: str) -> StoredResponse:
        row = self._response(db, owner, id)
        touch(db, [id], self._clock())
        return _stored(row)

    @in_transaction
    def cancel(self, db: sqlite3.Connection, owner: str, id: str) -> StoredResponse:
        """Cancel a background response; a response that has ended stays as it is. Raises
        `RequestError` for another response.
        """
        stored = _stored(self._response(db, owner, id))
        if not stored.body.get("background"):
            raise RequestError("only background responses can be cancelled", param="response_id")
        if stored.status in RUNNING:
            stored.body["status"] = "cancelled"
            self._end(db, id, stored.body, ())
        return stored

    @in_transaction
    def delete_response(self, db: sqlite3.Connection, owner: str, id: str) -> None:
        self._response(db, owner, id)
        db.execute("DELETE FROM object WHERE id = ?", (id,))

    @in_transaction
    def stopped(self, db: sqlite3.Connection, ids: Iterable[str]) -> list[str]:
        """The running responses that were cancelled or deleted."""
        return [
            id
            for id in ids
            if not db.execute(
                "SELECT 1 FROM object WHERE id = ? AND server IS NOT NULL", (id,)
            ).fetchone()
        ]

    @in_transaction
    def items_before(self, db: sqlite3.Connection, owner: str, previous: str) -> list[Item]:
        """All items of a conversation up to the end of the response `previous`. Raises
        `RequestError` if it has not ended well.
        """
        row = self._response(db, owner, previous, "previous_response_id")
        if row["status"] not in CONTINUED:
            raise RequestError(
                f"response '{previous}' is {row['status']}: it cannot be continued",
                param="previous_response_id",
            )
        return [*self._shown(db, row), *_stored(row).body["output"]]

    @in_transaction
    def items(
        self, db: sqlite3.Connection, owner: str, wanted: Mapping[str, str]
    ) -> dict[str, Item]:
        """Items of stored responses, whose ids their own contain, by where a request names them:
        `wanted` maps places to ids.
        """
        outputs: dict[str, dict[str, Item]] = {}
        found: dict[str, Item] = {}
        for place, id in wanted.items():
            response = f"resp_{id.partition('_')[2].partition('_')[0]}"
            if response not in outputs:
                outputs[response] = self._output(db, owner, response)
            if id not in outputs[response]:
                raise NotStoredError(
                    f"no stored item '{id[:100]}': send the whole item", param=place
                )
            found[place] = outputs[response][id]
        return found

    @in_transaction
    def input_items(self, db: sqlite3.Connection, owner: str, id: str) -> list[Item]:
        """All items that a response answers: those that it continues, then its own."""
        return self._shown(db, self._response(db, owner, id))

    # Conversations
    @in_transaction
    def make_conversation(
        self,
        db: sqlite3.Connection,
        owner: str,
        metadata: dict[str, str],
        items: Sequence[Item],
    ) -> dict[str, Any]:
        body: dict[str, Any] = {
            "id": f"conv_{uuid4().hex}",
            "object": "conversation",
            "created_at": int(self._clock()),
            "metadata": metadata,
        }
        turn = Turn(id=body["id"], owner=owner, body=body, input=[])
        self._insert(db, turn, None, kind="conversation")
        self._append(db, turn.id, items)
        self._make_room(db)
        return body

    @in_transaction
    def conversation(
        self,
        db: sqlite3.Connection,
        owner: str,
        id: str,
        metadata: dict[str, str] | None = None,
    ) -> dict[str, Any]:
        """A conversation as clients read it; with `metadata`, after it was changed."""
        body = body_of(self._conversation(db, owner, id))
        if metadata is not None:
            body["metadata"] = metadata
            db.execute("UPDATE object SET body = ? WHERE id = ?", (msgspec.json.encode(body), id))
        return body

    @in_transaction
    def delete_conversation(self, db: sqlite3.Connection, owner: str, id: str) -> None:
        self._conversation(db, owner, id)
        db.execute("DELETE FROM object WHERE id = ?", (id,))

    @in_transaction
    def conversation_items(
        self, db: sqlite3.Connection, owner: str, id: str, param: str = "conversation"
    ) -> tuple[list[Item], int]:
        """The items of a conversation, and the position of the last."""
        last = self._conversation(db, owner, id, param)["upto"]
        return items_of_conversation(db, id, last), last

    @in_transaction
    def add_items(
        self, db: sqlite3.Connection, owner: str, id: str, items: Sequence[Item]
    ) -> list[Item]:
        """Append items to a conversation. Returns them as they are stored."""
        self._conversation(db, owner, id)
        added = self._append(db, id, items)
        self._make_room(db)
        return added

    @in_transaction
    def delete_item(self, db: sqlite3.Connection, owner: str, id: str, item: str) -> dict[str, Any]:
        """Delete an item. Returns its conversation."""
        row = self._conversation(db, owner, id)
        found = db.execute(
            "DELETE FROM item WHERE conversation = ? AND id = ? RETURNING length(body)",
            (id, item),
        ).fetchall()
        if not found:
            raise NotStoredError(f"there is no item '{item[:100]}'", param="item_id")
        db.execute("UPDATE object SET size = size - ? WHERE id = ?", (found[0][0], id))
        return body_of(row)

    # Parts of these transactions
    def _output(self, db: sqlite3.Connection, owner: str, id: str) -> dict[str, Item]:
        try:
            body = body_of(self._response(db, owner, id))
        except NotStoredError:
            return {}
        return {item["id"]: item for item in body["output"]}

    def _insert(
        self, db: sqlite3.Connection, turn: Turn, server: str | None, kind: str = "response"
    ) -> None:
        body, own = msgspec.json.encode(turn.body), msgspec.json.encode(turn.input)
        db.execute(
            "INSERT INTO object VALUES (?, ?, ?, ?, ?, ?, x'', ?, ?, ?, ?, ?, ?)",
            (
                turn.id,
                kind,
                turn.owner,
                turn.body.get("status", ""),
                body,
                own,
                turn.previous,
                turn.conversation,
                turn.upto,
                server,
                len(body) + len(own),
                self._clock(),
            ),
        )
        if turn.previous is not None:
            touch(db, [turn.id, *chain_of(db, turn.previous)], self._clock())

    def _end(
        self, db: sqlite3.Connection, id: str, body: dict[str, Any], events: Sequence[bytes]
    ) -> None:
        found = db.execute(
            "SELECT conversation, input FROM object WHERE id = ? AND server IS NOT NULL", (id,)
        ).fetchone()
        if found is None:
            return
        encoded, kept = msgspec.json.encode(body), b"".join(event + b"\0" for event in events)
        db.execute(
            "UPDATE object SET status = ?, body = ?, events = ?, server = NULL, used = ?,"
            " size = length(input) + ? WHERE id = ?",
            (body["status"], encoded, kept, self._clock(), len(encoded) + len(kept), id),
        )
        self._append_turn(db, found["conversation"], msgspec.json.decode(found["input"]), body)

    def _response(
        self, db: sqlite3.Connection, owner: str, id: str, param: str = "response_id"
    ) -> sqlite3.Row:
        row = self._object(db, owner, id, "response", param)
        if row["server"] is not None and self._is_lost(id, row["server"]):
            body = body_of(row)
            body["status"], body["error"] = "failed", {"code": "server_error", "message": LOST}
            self._end(db, id, body, ())
            return self._object(db, owner, id, "response", param)
        return row

    def _is_lost(self, id: str, server: str) -> bool:
        if server == self._lives.own:
            return id not in self.running
        return not self._lives.lives(server)

    def _conversation(
        self, db: sqlite3.Connection, owner: str, id: str, param: str = "conversation_id"
    ) -> sqlite3.Row:
        row = self._object(db, owner, id, "conversation", param)
        touch(db, [id], self._clock())
        return row

    def _object(
        self, db: sqlite3.Connection, owner: str, id: str, kind: str, param: str
    ) -> sqlite3.Row:
        row: sqlite3.Row | None = db.execute(
            "SELECT * FROM object WHERE id = ? AND kind = ?", (id, kind)
        ).fetchone()
        if (
            row is None
            or not hmac.compare_digest(row["owner"], owner)
            or (row["server"] is None and row["used"] < self._clock() - self.settings.ttl_s)
        ):
            raise NotStoredError(
                f"there is no {kind} '{id[:100]}': it never was, or was deleted, has expired, or"
                " was evicted",
                param=param,
            )
        return row

    def _shown(self, db: sqlite3.Connection, row: sqlite3.Row) -> list[Item]:
        """All items that a response answers. Each earlier response must still be there."""
        turns: list[list[Item]] = [msgspec.json.decode(row["input"])]
        chain = [row["id"]]
        while row["previous"] is not None:
            row = self._object(
                db, row["owner"], row["previous"], "response", "previous_response_id"
            )
            turns.append([*msgspec.json.decode(row["input"]), *body_of(row)["output"]])
            chain.append(row["id"])
        if row["conversation"] is not None:
            turns.append(items_of_conversation(db, row["conversation"], row["upto"]))
        touch(db, chain, self._clock())
        return [item for turn in reversed(turns) for item in turn]

    def _append_turn(
        self,
        db: sqlite3.Connection,
        conversation: str | None,
        given: Sequence[Item],
        body: dict[str, Any],
    ) -> None:
        """Put the items of a response that has ended well into its conversation, if that is still
        there.
        """
        if (
            conversation is not None
            and body["status"] in CONTINUED
            and db.execute("SELECT 1 FROM object WHERE id = ?", (conversation,)).fetchone()
        ):
            self._append(db, conversation, [*given, *body["output"]])

    def _append(
        self, db: sqlite3.Connection, conversation: str, items: Sequence[Item]
    ) -> list[Item]:
        (last,) = db.execute("SELECT upto FROM object WHERE id = ?", (conversation,)).fetchone()
        known = {
            id
            for (id,) in db.execute("SELECT id FROM item WHERE conversation = ?", (conversation,))
        }
        added, size = [], 0
        for number, item in enumerate(items_of(items), last + 1):
            if item["id"] in known:  # a client sent an earlier item again
                item = with_new_id(item)
            known.add(item["id"])
            body = msgspec.json.encode(item)
            db.execute(
                "INSERT INTO item VALUES (?, ?, ?, ?)", (conversation, number, item["id"], body)
            )
            added.append(item)
            size += len(body)
        db.execute(
            "UPDATE object SET size = size + ?, upto = upto + ?, used = ? WHERE id = ?",
            (size, len(added), self._clock(), conversation),
        )
        return added

    def _make_room(self, db: sqlite3.Connection) -> None:
        """Delete what has expired, and evict beyond the limits. What still runs stays."""
        settings = self.settings
        for (server,) in db.execute(
            "SELECT DISTINCT server FROM object WHERE server IS NOT NULL AND server != ?",
            (self._lives.own,),
        ).fetchall():
            if not self._lives.lives(server):
                for row in db.execute(
                    "SELECT * FROM object WHERE server = ?", (server,)
                ).fetchall():
                    self._response(db, row["owner"], row["id"])
        db.execute(
            "DELETE FROM object WHERE server IS NULL AND used < ?",
            (self._clock() - settings.ttl_s,),
        )
        while True:
            objects, size = db.execute("SELECT objects, bytes FROM total").fetchone()
            if objects <= settings.max_objects and size <= settings.max_bytes:
                return
            oldest = db.execute(
                "SELECT id FROM object WHERE server IS NULL ORDER BY used LIMIT 1"
            ).fetchone()
            if oldest is None:
                return
            db.execute("DELETE FROM object WHERE id = ?", (oldest["id"],))


def _stored(row: sqlite3.Row) -> StoredResponse:
    body = body_of(row)
    body["status"] = row["status"]
    return StoredResponse(body, row["events"].split(b"\0")[:-1])
