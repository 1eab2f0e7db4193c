"""The tables of the store, and what is read and changed in them by SQL alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from penstock.openai.responses_api import Item

if TYPE_CHECKING:
    import sqlite3

VERSION = 1
SCHEMA = """
CREATE TABLE object (
    id TEXT PRIMARY KEY,
    kind TEXT NOT NULL,             -- response or conversation
    owner TEXT NOT NULL,
    status TEXT NOT NULL,
    body BLOB NOT NULL,             -- as clients read it
    input BLOB NOT NULL,            -- a response's own items
    events BLOB NOT NULL,           -- of a background response, with a NUL behind each
    previous TEXT,                  -- the response that it continues
    conversation TEXT,
    upto INTEGER NOT NULL,          -- the position of the conversation's last item; of a response,
                                    -- of the last that it was shown
    server TEXT,                    -- runs it in the background
    size INTEGER NOT NULL,
    used REAL NOT NULL
);;
CREATE INDEX object_used ON object (used);;
CREATE INDEX object_server ON object (server) WHERE server IS NOT NULL;;
CREATE TABLE item (
    conversation TEXT NOT NULL REFERENCES object (id) ON DELETE CASCADE,
    position INTEGER NOT NULL,
    id TEXT NOT NULL,
    body BLOB NOT NULL,
    PRIMARY KEY (conversation, position),
    UNIQUE (conversation, id)
);;
CREATE TABLE total (objects INTEGER NOT NULL, bytes INTEGER NOT NULL);;
INSERT INTO total VALUES (0, 0);;
CREATE TRIGGER object_made AFTER INSERT ON object BEGIN
    UPDATE total SET objects = objects + 1, bytes = bytes + NEW.size;
END;;
CREATE TRIGGER object_sized AFTER UPDATE OF size ON object BEGIN
    UPDATE total SET bytes = bytes + NEW.size - OLD.size;
END;;
CREATE TRIGGER object_gone AFTER DELETE ON object BEGIN
    UPDATE total SET objects = objects - 1, bytes = bytes - OLD.size;
END
"""


def touch(db: sqlite3.Connection, ids: Sequence[str], now: float) -> None:
    """Mark objects as used; each a little later than the one before, so that what a response
    continues is evicted after it.
    """
    db.executemany(
        "UPDATE object SET used = ? WHERE id = ?",
        [(now + number * 1e-5, id) for number, id in enumerate(ids)],
    )


def chain_of(db: sqlite3.Connection, id: str | None) -> list[str]:
    """A response and those that it continues, newest first."""
    found = []
    while id is not None:
        found.append(id)
        row = db.execute("SELECT previous FROM object WHERE id = ?", (id,)).fetchone()
        id = row[0] if row else None
    return found


def items_of_conversation(db: sqlite3.Connection, conversation: str, upto: int) -> list[Item]:
    """Its items up to a position, oldest first."""
    return [
        msgspec.json.decode(body)
        for (body,) in db.execute(
            "SELECT body FROM item WHERE conversation = ? AND position <= ? ORDER BY position",
            (conversation, upto),
        )
    ]


def body_of(row: sqlite3.Row) -> dict[str, Any]:
    """A response or conversation as clients read it."""
    body: dict[str, Any] = msgspec.json.decode(row["body"])
    return body
