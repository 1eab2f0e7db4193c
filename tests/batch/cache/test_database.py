"""The cache of answers that jobs share."""

import os
import sqlite3
import stat
import time

import pytest
from fsspec.implementations.local import LocalFileSystem

from penstock.batch.cache.database import FILE, AnswerDatabase, RemoteAnswers
from penstock.batch.rows.row import Outcome
from penstock.errors import ConfigError
from penstock.types import Usage

GIB = 1 << 30


def digest(number):
    return number.to_bytes(2, "little") * 8


def answer(number, size=1):
    return Outcome(f"answer {number}" * size, None, "stop", Usage(3, 2, 1), 1, 1.5, {"a": [1]})


@pytest.fixture
def opened(tmp_path):
    def make(folder="cache", *, most_bytes=GIB, seconds=1000.0):
        database = AnswerDatabase(tmp_path / folder, most_bytes=most_bytes, seconds=seconds)
        databases.append(database)
        return database

    databases: list[AnswerDatabase] = []
    yield make
    for database in databases:
        database.close()


def test_answers_outlive_the_process_and_are_private(opened, tmp_path):
    first = opened()
    for number in range(600):
        first.put(digest(number), answer(number))
    assert first.get(digest(599)) == answer(599)  # not written yet
    first.close()
    second = opened()
    assert [second.get(digest(n)) for n in (0, 300, 599)] == [answer(n) for n in (0, 300, 599)]
    assert second.get(digest(600)) is None
    assert stat.S_IMODE(os.stat(tmp_path / "cache" / FILE).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(tmp_path / "cache").st_mode) == 0o700


def test_two_jobs_read_and_write_at_once(opened):
    one, other = opened(), opened()
    for number in range(1000):
        (one, other)[number % 2].put(digest(number), answer(number))
    one.write()
    other.write()
    assert all(one.get(digest(number)) == answer(number) for number in range(1000))
    assert all(other.get(digest(number)) == answer(number) for number in range(1000))


def test_a_locked_cache_is_a_miss_and_written_later(opened, tmp_path):
    database = opened()
    database.put(digest(1), answer(1))
    holder = sqlite3.connect(tmp_path / "cache" / FILE, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    database.write()
    assert database.get(digest(1)) == answer(1)
    holder.execute("ROLLBACK")
    holder.close()
    database.write()
    assert opened().get(digest(1)) == answer(1)


def test_a_cache_that_is_locked_as_it_is_opened_is_used_later(opened, tmp_path, caplog):
    (tmp_path / "cache").mkdir()
    holder = sqlite3.connect(tmp_path / "cache" / FILE, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")  # another job makes the table just now
    database = opened()
    holder.execute("ROLLBACK")
    holder.close()
    assert database.get(digest(1)) is None
    database.put(digest(1), answer(1))
    database.close()
    assert opened().get(digest(1)) == answer(1)
    assert caplog.text == ""


def test_answers_do_not_each_wait_for_a_lock(opened, monkeypatch):
    tried = []
    database = opened()
    monkeypatch.setattr(database, "add", lambda *_, **__: tried.append(1))
    monkeypatch.setattr("time.monotonic", lambda: 0.0)
    for number in range(1000):
        database.put(digest(number), answer(number))
    assert len(tried) == 3


def test_what_expires_and_what_is_too_much_goes(opened, monkeypatch):
    now = 1_000_000.0
    monkeypatch.setattr("time.time", lambda: now)
    database = opened(most_bytes=2 << 20)
    for number in range(100):
        now += 1
        database.put(digest(number), answer(number, size=4000))
        database.write()
    kept = [number for number in range(100) if database.get(digest(number)) is not None]
    assert 30 < len(kept) < 70
    assert kept == list(range(100 - len(kept), 100))  # the oldest are gone
    now += 990
    assert database.get(digest(50)) is None
    assert database.get(digest(99)) is not None
    database.close()
    now += 1000
    later = opened(most_bytes=2 << 20)
    assert later.get(digest(99)) is None


@pytest.mark.parametrize("place", [0, 50, 4096, 9000])
def test_damage_is_a_miss(opened, tmp_path, place, caplog):
    database = opened()
    for number in range(300):
        database.put(digest(number), answer(number))
    database.close()
    path = tmp_path / "cache" / FILE
    data = bytearray(path.read_bytes())
    data[place : place + 2000] = b"\xa5" * 2000
    path.write_bytes(data)
    damaged = opened()
    for number in range(300):
        found = damaged.get(digest(number))
        assert found is None or found == answer(number)
    for number in range(300):
        damaged.put(digest(number), answer(number))
    damaged.write()
    damaged.close()
    again = opened()
    for number in range(300):
        again.put(digest(number), answer(number))
    assert again.get(digest(7)) == answer(7)


@pytest.mark.parametrize("damaged", [True, False])
def test_a_cache_that_cannot_be_used_is_one_warning(opened, tmp_path, monkeypatch, caplog, damaged):
    (tmp_path / "cache").mkdir()
    if damaged:
        (tmp_path / "cache" / FILE).write_text("no database" * 100)
        monkeypatch.setattr(os, "unlink", lambda path: os.stat(tmp_path / "absent"))
    else:
        (tmp_path / "cache" / FILE).mkdir()
    database = opened()
    for number in range(9):
        assert database.get(digest(number)) is None
        database.put(digest(number), answer(number))
    database.close()
    assert len(caplog.messages) == 1


def test_a_changed_answer_is_a_miss(opened, tmp_path):
    database = opened()
    database.put(digest(1), answer(1))
    database.close()
    with sqlite3.connect(tmp_path / "cache" / FILE) as changed:
        changed.execute("UPDATE answers SET made = made + 1")
    changed.close()
    assert opened().get(digest(1)) is None


def test_a_place_that_cannot_be_made_is_refused(opened, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cache: .*file/cache cannot be made"):
        opened("file/cache")


def test_machines_share_answers_at_a_url(tmp_path, monkeypatch):
    url = f"file://{tmp_path}/shared"
    answers = []
    for machine in ("a", "b", "c"):
        monkeypatch.setenv("PENSTOCK_CACHE_DIR", str(tmp_path / machine))
        cache = RemoteAnswers(url, most_bytes=GIB, seconds=1000)
        answers.append([cache.get(digest(number)) for number in (1, 2)])
        cache.put(digest(len(answers)), answer(len(answers)))
        cache.close()
    assert answers == [[None, None], [answer(1), None], [answer(1), answer(2)]]
    assert len(list((tmp_path / "shared").iterdir())) == 3


def test_files_at_a_url_are_bounded_and_damage_is_a_miss(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("PENSTOCK_CACHE_DIR", str(tmp_path / "a"))
    url = f"file://{tmp_path}/shared"
    cache = RemoteAnswers(url, most_bytes=GIB, seconds=1000)
    for number in (1, 2):
        cache.put(digest(number), answer(number))
    cache.close()
    (file,) = (tmp_path / "shared").iterdir()
    file.write_bytes(file.read_bytes().replace(b"answer 2", b"answer 3"))
    (tmp_path / "shared" / "answers-1-old.bin").write_bytes(b"x")
    (tmp_path / "shared" / "other.txt").write_bytes(b"x")
    monkeypatch.setenv("PENSTOCK_CACHE_DIR", str(tmp_path / "b"))
    cache = RemoteAnswers(url, most_bytes=GIB, seconds=1000)
    assert (cache.get(digest(1)), cache.get(digest(2))) == (answer(1), None)
    cache.close()
    assert {path.name for path in (tmp_path / "shared").iterdir()} == {file.name, "other.txt"}
    monkeypatch.setenv("PENSTOCK_CACHE_DIR", str(tmp_path / "c"))
    RemoteAnswers(url, most_bytes=10, seconds=1000).close()
    assert [path.name for path in (tmp_path / "shared").iterdir()] == ["other.txt"]


def test_answers_that_another_job_kept_from_being_written_are_fetched_again(tmp_path, monkeypatch):
    url = f"file://{tmp_path}/shared"
    monkeypatch.setenv("PENSTOCK_CACHE_DIR", str(tmp_path / "a"))
    cache = RemoteAnswers(url, most_bytes=GIB, seconds=1000)
    cache.put(digest(1), answer(1))
    cache.close()
    monkeypatch.setenv("PENSTOCK_CACHE_DIR", str(tmp_path / "b"))
    with monkeypatch.context() as locked:
        locked.setattr(AnswerDatabase, "add", lambda *_, **__: False)
        RemoteAnswers(url, most_bytes=GIB, seconds=1000).close()
    cache = RemoteAnswers(url, most_bytes=GIB, seconds=1000)
    assert cache.get(digest(1)) == answer(1)
    cache.close()


def test_files_that_another_job_removes_meanwhile_are_passed_over(tmp_path, monkeypatch, caplog):
    url = f"file://{tmp_path}/shared"
    for number in (1, 2):
        monkeypatch.setenv("PENSTOCK_CACHE_DIR", str(tmp_path / str(number)))
        cache = RemoteAnswers(url, most_bytes=GIB, seconds=1000)
        cache.put(digest(number), answer(number))
        cache.close()
    for stamp in (int(time.time()) + 60, 1):  # listed first and to be read, too old to be read
        (tmp_path / "shared" / f"answers-{stamp}-gone.bin").write_bytes(b"")
    listed = LocalFileSystem.ls

    def ls(self, *given, **options):
        found = listed(self, *given, **options)
        for path in (tmp_path / "shared").glob("*-gone.bin"):
            path.unlink()
        return found

    monkeypatch.setattr(LocalFileSystem, "ls", ls)
    monkeypatch.setenv("PENSTOCK_CACHE_DIR", str(tmp_path / "c"))
    cache = RemoteAnswers(url, most_bytes=GIB, seconds=1000)
    assert [cache.get(digest(number)) for number in (1, 2)] == [answer(1), answer(2)]
    cache.close()
    assert caplog.text == ""


def test_an_outage_is_a_warning(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("PENSTOCK_CACHE_DIR", str(tmp_path / "a"))
    (tmp_path / "shared").write_text("a file is in the way")
    cache = RemoteAnswers(f"file://{tmp_path}/shared/x", most_bytes=GIB, seconds=1000)
    cache.put(digest(1), answer(1))
    cache.close()
    assert "cannot be reached" in caplog.text
    (tmp_path / "shared").unlink()
    again = RemoteAnswers(f"file://{tmp_path}/shared/x", most_bytes=GIB, seconds=1000)
    assert again.get(digest(1)) == answer(1)  # here all the while, and sent now
    again.close()
    assert len(list((tmp_path / "shared" / "x").iterdir())) == 1
