"""Stored responses and conversations: what a caller finds again, and for how long."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from penstock.errors import ConfigError, NotStoredError, RequestError, UnavailableError
from penstock.openai.responses_api import items_of
from penstock.serve.config.settings import StoreSettings
from penstock.serve.store.database import Lives
from penstock.serve.store.responses import LOST, ResponseStore, Turn

Open = Callable[..., ResponseStore]


@pytest.fixture
def now() -> list[float]:
    """The time that stores read."""
    return [1000.0]


@pytest.fixture
def opened(tmp_path: Path, now: list[float]) -> Iterator[Open]:
    """Opens a store of one file."""
    made = []

    def open_store(**limits: Any) -> ResponseStore:
        settings = StoreSettings(path=str(tmp_path / "kept" / "store.db"), **limits)
        made.append(ResponseStore(settings, clock=lambda: now[0]))
        return made[-1]

    yield open_store
    for store in made:
        store.close()


def turn(
    id: str, owner: str = "me", text: str = "hi", status: str = "completed", **more: Any
) -> Turn:
    output = items_of([{"id": f"out_{id}", "role": "assistant", "content": f"to {text}"}])
    body = {"id": id, "status": status, "output": output, "background": status == "queued"}
    return Turn(id=id, owner=owner, body=body, input=items_of(text), **more)


def texts(items: list[Any]) -> list[str]:
    return [item["content"][0]["text"] for item in items]


async def test_a_response_is_found_by_its_owner_only_until_it_is_deleted(opened: Open) -> None:
    store = opened()
    await store.add(turn("a"))
    assert (await store.response("me", "a")).body["output"][0]["id"] == "out_a"
    for attempt in (store.response, store.input_items, store.delete_response, store.items_before):
        with pytest.raises(NotStoredError, match="there is no response 'a'"):
            await attempt("another", "a")
    await store.delete_response("me", "a")
    with pytest.raises(NotStoredError):
        await store.response("me", "a")


async def test_a_response_continues_others(opened: Open) -> None:
    store = opened()
    await store.add(turn("a", text="one"))
    await store.add(turn("b", text="two", previous="a"))
    assert texts(await store.items_before("me", "b")) == ["one", "to one", "two", "to two"]
    assert texts(await store.input_items("me", "b")) == ["one", "to one", "two"]
    await store.delete_response("me", "a")
    with pytest.raises(NotStoredError, match="'a'") as gone:
        await store.items_before("me", "b")
    assert gone.value.param == "previous_response_id"
    assert (await store.response("me", "b")).status == "completed"


async def test_what_nobody_used_expires(opened: Open, now: list[float]) -> None:
    store = opened(ttl_s=10.0)
    await store.add(turn("a"))
    await store.add(turn("b"))
    now[0] += 8
    await store.response("me", "a")
    now[0] += 8
    await store.response("me", "a")
    with pytest.raises(NotStoredError):
        await store.response("me", "b")
    await store.add(turn("c"))
    assert await _objects(store) == ["a", "c"]


async def test_the_least_recently_used_is_evicted(opened: Open, now: list[float]) -> None:
    store = opened(max_objects=3)
    for id in ("a", "b", "c"):
        now[0] += 1
        await store.add(turn(id))
    now[0] += 1
    await store.response("me", "a")
    now[0] += 1
    await store.add(turn("d"))
    assert await _objects(store) == ["a", "c", "d"]


async def test_what_a_response_continues_is_evicted_after_it(
    opened: Open, now: list[float]
) -> None:
    store = opened(max_objects=3)
    await store.add(turn("a"))
    await store.add(turn("b", previous="a"))
    now[0] += 1
    await store.add(turn("c", previous="b"))
    now[0] += 1
    await store.add(turn("other"))
    assert await _objects(store) == ["a", "b", "other"]


async def test_the_bytes_are_bounded(opened: Open, now: list[float]) -> None:
    store = opened(max_bytes=3000)
    conversation = await store.make_conversation("me", {}, items_of("x" * 2000))
    now[0] += 1
    await store.add(turn("small"))
    assert await _objects(store) == [conversation["id"], "small"]
    now[0] += 1
    await store.add(turn("big", text="y" * 1000))
    assert await _objects(store) == ["small", "big"]
    assert await _rows(store, "SELECT * FROM item") == []
    await store.delete_response("me", "big")
    await store.delete_response("me", "small")
    assert await _rows(store, "SELECT * FROM total") == [(0, 0)]


async def test_a_conversation_gets_the_items_of_its_responses(opened: Open) -> None:
    store = opened()
    id = (await store.make_conversation("me", {"a": "b"}, items_of("first")))["id"]
    items, last = await store.conversation_items("me", id)
    assert (texts(items), last) == (["first"], 1)
    await store.add(turn("a", text="second", conversation=id, upto=last))
    await store.add_items("me", id, items_of("third"))
    items, last = await store.conversation_items("me", id)
    assert texts(items) == ["first", "second", "to second", "third"]
    # A response was shown what stood there before it.
    assert texts(await store.input_items("me", "a")) == ["first", "second"]
    assert texts(await store.items_before("me", "a")) == ["first", "second", "to second"]
    assert (await store.delete_item("me", id, items[3]["id"]))["metadata"] == {"a": "b"}
    await store.add_items("me", id, items_of("fourth"))  # not in the place of the third
    assert (await store.conversation_items("me", id))[1] == 5
    assert (await store.conversation("me", id, {"c": "d"}))["metadata"] == {"c": "d"}
    assert (await store.conversation("me", id))["metadata"] == {"c": "d"}
    for attempt in (store.conversation, store.conversation_items, store.delete_conversation):
        with pytest.raises(NotStoredError, match="there is no conversation"):
            await attempt("another", id)
    await store.delete_conversation("me", id)
    await store.add(turn("b", conversation=id))  # it was deleted while the response ran
    assert texts(await store.input_items("me", "b")) == ["hi"]


async def test_an_item_that_is_sent_again_gets_another_id(opened: Open) -> None:
    store = opened()
    (item,) = items_of("again")
    id = (await store.make_conversation("me", {}, [item]))["id"]
    (second,) = await store.add_items("me", id, [item])
    assert second["id"] != item["id"]
    assert [one["id"] for one in (await store.conversation_items("me", id))[0]] == [
        item["id"],
        second["id"],
    ]


async def test_a_background_response_from_queued_to_completed(
    opened: Open, now: list[float]
) -> None:
    store = opened(ttl_s=10.0)
    await store.add_running(turn("a", status="queued"))
    assert (await store.response("me", "a")).status == "queued"
    with pytest.raises(RequestError, match="is queued"):
        await store.items_before("me", "a")
    await store.begin("a")
    now[0] += 100  # what runs does not expire
    assert (await store.response("me", "a")).status == "in_progress"
    assert await store.stopped(["a"]) == []
    await store.finish("a", {**turn("a").body, "background": True}, [b"one\n\n", b"two\n\n"])
    stored = await store.response("me", "a")
    assert (stored.status, stored.events) == ("completed", [b"one\n\n", b"two\n\n"])
    assert (await store.cancel("me", "a")).status == "completed"


async def test_a_cancelled_response_stays_so(opened: Open) -> None:
    store, other = opened(), opened()
    await store.add_running(turn("a", status="queued"))
    assert (await other.cancel("me", "a")).status == "cancelled"
    assert await store.stopped(["a"]) == ["a"]
    await store.finish("a", turn("a").body, [])
    assert (await store.response("me", "a")).status == "cancelled"
    await store.add(turn("b"))
    with pytest.raises(RequestError, match="only background responses"):
        await store.cancel("me", "b")


async def test_a_response_of_a_dead_server_has_failed(opened: Open, tmp_path: Path) -> None:
    store, other = opened(), opened()
    await store.add_running(turn("a", status="queued"))
    await store.add_running(turn("b", status="queued"))
    assert (await other.response("me", "a")).status == "queued"
    store.close()  # as after a kill: nothing was finished
    lost = await other.response("me", "a")
    assert (lost.status, lost.body["error"]["message"]) == ("failed", LOST)
    later = opened()
    assert await _rows(later, "SELECT id, status FROM object ORDER BY id") == [
        ("a", "failed"),
        ("b", "failed"),
    ]


async def test_a_response_that_could_not_be_finished_has_failed(opened: Open) -> None:
    store = opened()
    await store.add_running(turn("a", status="queued"))
    store.running.discard("a")
    assert (await store.response("me", "a")).status == "failed"


async def test_files_are_for_this_user_alone(opened: Open, tmp_path: Path) -> None:
    store = opened()
    await store.add_running(turn("a", status="queued"))
    folder = tmp_path / "kept"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {file.stat().st_mode & 0o777 for file in folder.iterdir()} == {0o600}
    assert len(list(folder.iterdir())) == 4  # the file, its log and index, and the server's lock
    store.close()
    assert [file.name for file in folder.iterdir()] == ["store.db"]
    with pytest.raises(UnavailableError, match="store does not work"):
        await store.response("me", "a")


def test_a_lock_that_failed_is_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    lives = Lives(tmp_path / "store.db")
    with monkeypatch.context() as changed:
        changed.setattr(fcntl, "flock", no_locks)
        for _ in range(2):
            with pytest.raises(OSError, match="no locks"):
                lives.hold()
        assert not any(tmp_path.iterdir())
    assert lives.hold() == lives.own
    assert Lives(tmp_path / "store.db").lives(lives.own)
    lives.close()


def test_a_file_that_cannot_be_used_is_refused(opened: Open, tmp_path: Path) -> None:
    opened().close()
    file = tmp_path / "kept" / "store.db"
    db = sqlite3.connect(file)
    db.execute("PRAGMA user_version = 9")
    db.close()
    with pytest.raises(ConfigError, match=r"store.* has version 9 .*reads version 1: start"):
        opened()
    file.write_bytes(b"no database" * 100)
    with pytest.raises(ConfigError, match="cannot be used"):
        opened()


@pytest.mark.parametrize("version", [0, 1, 9])
def test_another_programs_file_stays_as_it_is(version: int, opened: Open, tmp_path: Path) -> None:
    opened().close()
    file = tmp_path / "kept" / "store.db"
    file.unlink()
    db = sqlite3.connect(file)
    db.execute("CREATE TABLE theirs (a)")
    db.execute(f"PRAGMA user_version = {version}")
    db.close()
    for content in (file.read_bytes(), b"root:x:0:0\n"):
        file.write_bytes(content)
        file.chmod(0o644)
        with pytest.raises(ConfigError, match="store"):
            opened()
        assert (file.read_bytes(), file.stat().st_mode & 0o777) == (content, 0o644)


KILLED = """
import os, signal, sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("PRAGMA cache_size = 1")
db.execute("BEGIN IMMEDIATE")
db.execute("CREATE TABLE half (a)")
db.executemany("INSERT INTO half VALUES (?)", ((n,) for n in range(20_000)))
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_file_whose_making_was_killed_is_made_anew(opened: Open, tmp_path: Path) -> None:
    file = tmp_path / "kept" / "store.db"
    file.parent.mkdir()
    subprocess.run([sys.executable, "-c", KILLED, str(file)], check=False)
    assert file.with_name("store.db-journal").stat().st_size
    opened()


WRITER = """
import asyncio, sys
from penstock.serve.config.settings import StoreSettings
from penstock.serve.store.database import Lives
from penstock.serve.store.responses import ResponseStore, Turn
async def main():
    store = ResponseStore(StoreSettings(path=sys.argv[1]))
    for n in range(40):
        body = {"id": f"{sys.argv[2]}-{n}", "status": "completed", "output": []}
        await store.add(Turn(id=body["id"], owner="me", body=body, input=[]))
    store.close()
asyncio.run(main())
"""


def test_several_processes_write_to_one_file(opened: Open, tmp_path: Path) -> None:
    path = str(tmp_path / "kept" / "store.db")
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, path, str(n)]) for n in range(3)]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    assert len(asyncio.run(_objects(opened()))) == 120


async def _objects(store: ResponseStore) -> list[str]:
    return [id for (id,) in await _rows(store, "SELECT id FROM object ORDER BY rowid")]


async def _rows(store: ResponseStore, query: str) -> list[Any]:
    return await store._state.run(lambda db: [tuple(row) for row in db.execute(query)])
