"""Jobs seen and steered from outside."""

import asyncio
import errno
import os
from pathlib import Path

import pytest

from jobs import ask, interrupted, lines, numbered
from penstock.batch.job.result import Counts
from penstock.batch.monitor import control, status as statuses
from penstock.batch.monitor.control import Monitor
from penstock.batch.monitor.status import Status, find, id_of, known_folders
from penstock.errors import InputError, JobError, JobMismatchError, OutputError


@pytest.fixture
def state(tmp_path, monkeypatch):
    """An empty registry."""
    monkeypatch.setenv("PENSTOCK_STATE_DIR", str(tmp_path / "state"))
    return tmp_path / "state"


def seen(folder):
    found = control.live(folder)
    assert found is not None
    return found


async def asked(folder, word, **options):
    return await asyncio.to_thread(control.ask, folder, word, **options)


async def held_job(tmp_path, make_engine, name="out.jsonl"):
    """A running job of 20 rows whose engine waits from row 8 on."""
    engine = make_engine(concurrency=2)
    engine.gate, engine.held = asyncio.Event(), {f"text {number}" for number in range(8, 20)}
    job = asyncio.create_task(ask(numbered(20), tmp_path / name, engine))
    await engine.was_asked(9)
    return job, engine, tmp_path / f"{name}.penstock"


async def test_a_running_job_is_seen_and_ends_complete(tmp_path, make_engine, state):
    job, engine, folder = await held_job(tmp_path, make_engine)
    found = await asyncio.to_thread(seen, folder)
    assert (found.state, found.pid, found.total) == ("running", os.getpid(), 20)
    assert found.rows >= 8
    assert found.output == str(tmp_path / "out.jsonl")
    assert list(known_folders()) == [folder]
    rows = (await asked(folder, "tail"))["rows"]
    assert rows[0] == {
        "number": 1,
        "row": 0,
        "status": "ok",
        "response": "TEXT 0",
        "parsed": None,
        "error": None,
    }
    assert (await asked(folder, "tail", after=rows[-1]["number"]))["rows"] == []
    engine.gate.set()
    await job
    found = seen(folder)
    assert (found.state, found.rows, found.failed) == ("complete", 20, 0)
    assert await asked(folder, "status") is None
    assert not (folder / control.FILE).exists()


async def test_a_paused_job_starts_no_row_until_it_goes_on(tmp_path, make_engine, state):
    job, engine, folder = await held_job(tmp_path, make_engine)
    assert (await asked(folder, "pause"))["state"] == "paused"
    engine.gate.set()
    before = len(engine.asked)
    while (await asked(folder, "status"))["rows"] < before:
        pass
    assert len(engine.asked) == before < 20
    assert (await asked(folder, "resume"))["state"] == "running"
    await job
    assert [row["id"] for row in lines(tmp_path / "out.jsonl")] == list(range(20))


async def test_a_cancelled_job_keeps_what_is_done(tmp_path, make_engine, state):
    job, engine, folder = await held_job(tmp_path, make_engine)
    assert (await asked(folder, "pause"))["state"] == "paused"
    assert (await asked(folder, "cancel"))["state"] == "stopping"
    engine.gate.set()
    result = await job
    assert 9 <= result.counts.rows < 20
    assert seen(folder).state == "stopped"
    again = make_engine()
    await ask(numbered(20), tmp_path / "out.jsonl", again)
    assert len(again.asked) == 20 - result.counts.rows


async def test_a_job_that_is_cancelled_at_its_last_rows_ends_complete(tmp_path, make_engine, state):
    engine = make_engine(concurrency=2)
    engine.gate, engine.held = asyncio.Event(), {"text 18", "text 19"}
    job = asyncio.create_task(ask(numbered(20), tmp_path / "out.jsonl", engine))
    await engine.was_asked(20)
    folder = tmp_path / "out.jsonl.penstock"
    assert (await asked(folder, "cancel"))["state"] == "stopping"
    engine.gate.set()
    assert (await job).counts.rows == 20
    assert (seen(folder).state, len(lines(tmp_path / "out.jsonl"))) == ("complete", 20)


async def test_a_second_cancel_ends_at_once(tmp_path, make_engine, state):
    job, _, folder = await held_job(tmp_path, make_engine)
    await asked(folder, "cancel")
    await asked(folder, "cancel")
    with pytest.raises(asyncio.CancelledError):
        await job
    assert seen(folder).state == "stopped"


async def test_a_failed_and_a_killed_job(tmp_path, make_engine, state):
    def fails(text):
        return JobError("it broke") if text == "text 3" else text

    with pytest.raises(JobError):
        await ask(numbered(5), tmp_path / "out.jsonl", make_engine(fails))
    folder = tmp_path / "out.jsonl.penstock"
    found = seen(folder)
    assert (found.state, found.error) == ("failed", "it broke")
    found.state, found.updated = "running", 1.0  # as a killed process leaves it
    statuses.save(folder, found)
    assert seen(folder).state == "interrupted"
    assert control.ask(folder, "cancel") is None


async def test_what_answers_in_a_stale_socket_is_nobody(tmp_path, make_engine, state):
    await interrupted(numbered(20), tmp_path / "out.jsonl", make_engine(), 5)
    folder = tmp_path / "out.jsonl.penstock"
    (folder / control.FILE).write_text("")
    assert control.ask(folder, "status") is None
    await ask(numbered(20), tmp_path / "out.jsonl", make_engine())
    assert not (folder / control.FILE).exists()


async def test_a_long_path_has_a_socket_too(tmp_path, make_engine, state):
    deep = tmp_path / ("d" * 120)
    deep.mkdir()
    job, engine, folder = await held_job(deep, make_engine)
    assert (await asked(folder, "status"))["state"] == "running"
    engine.gate.set()
    await job


async def test_nonsense_on_the_socket_does_no_harm(tmp_path, make_engine, state):
    job, engine, folder = await held_job(tmp_path, make_engine)
    for line in (b"\n", b"[]\n", b"{", b"\xff\n"):
        with control._short(folder) as path:
            reader, writer = await asyncio.open_unix_connection(path)
        writer.write(line)
        writer.write_eof()
        assert await reader.read() == b""
        writer.close()
    assert (await asked(folder, "unknown"))["state"] == "running"
    engine.gate.set()
    await job


async def test_a_state_directory_that_takes_no_status_does_no_harm(
    tmp_path, make_engine, monkeypatch
):
    monkeypatch.setenv("PENSTOCK_STATE_DIR", "/dev/null/nowhere")
    monkeypatch.setattr(control, "FILE", "no/such/folder.sock")
    monkeypatch.setattr(statuses, "FILE", "no/such/folder.json")
    assert (await ask(numbered(3), tmp_path / "out.jsonl", make_engine())).counts.ok == 3


async def test_jobs_are_found(tmp_path, make_engine, state, monkeypatch):
    for name in ("a.jsonl", "b.jsonl"):
        await ask(numbered(1), tmp_path / name, make_engine())
    folder = tmp_path / "a.jsonl.penstock"
    monkeypatch.chdir(tmp_path)
    name = id_of(folder)
    for job in (name, name[:7], str(tmp_path / "a.jsonl"), str(folder)):
        assert find(job) == folder
    assert find("a.jsonl").resolve() == folder
    with pytest.raises(InputError, match=r"there is no job 'c.jsonl'"):
        find("c.jsonl")
    assert sorted(known_folders(str(tmp_path))) == [folder, tmp_path / "b.jsonl.penstock"]
    (folder / "status.json").unlink()  # as of an earlier version
    found = seen(folder)
    assert (found.state, found.rows, found.model) == ("complete", 1, "scripted-model")
    folder.rename(tmp_path / "gone")
    assert list(known_folders()) == [tmp_path / "b.jsonl.penstock"]
    assert len(list((state / "registry").iterdir())) == 1


@pytest.mark.parametrize("number", [errno.ENAMETOOLONG, errno.EACCES, errno.ENOTCONN])
async def test_a_job_that_cannot_be_reached_hides_no_other(
    tmp_path, make_engine, state, monkeypatch, number
):
    await ask(numbered(1), tmp_path / "a.jsonl", make_engine())
    await ask(numbered(1), tmp_path / "b.jsonl", make_engine())
    far, near = tmp_path / "a.jsonl.penstock", tmp_path / "b.jsonl.penstock"
    stat = Path.stat

    def failing(self, **options):
        if self == far:
            raise OSError(number, os.strerror(number), str(self))
        return stat(self, **options)

    monkeypatch.setattr(Path, "stat", failing)
    assert list(known_folders()) == [near]
    monkeypatch.undo()
    monkeypatch.setenv("PENSTOCK_STATE_DIR", str(state))
    assert sorted(known_folders()) == [far, near]  # it was not forgotten


async def test_a_job_that_does_not_begin_leaves_the_status(tmp_path, make_engine, state):
    await ask(numbered(1), tmp_path / "a.jsonl", make_engine())
    before = seen(tmp_path / "a.jsonl.penstock")
    with pytest.raises(JobMismatchError):
        await ask(numbered(1), tmp_path / "a.jsonl", make_engine(), prompt="{id}")
    assert seen(tmp_path / "a.jsonl.penstock") == before


def test_a_damaged_status_is_that_of_the_manifest(tmp_path):
    (tmp_path / "status.json").write_text("{")
    assert statuses.load(tmp_path) is None
    statuses.save(tmp_path, Status("a", "b", "running"))
    assert statuses.load(tmp_path) == Status("a", "b", "running")


async def test_a_failure_that_names_a_place_in_no_utf8_is_said(tmp_path, state):
    status = Status("0", "out.jsonl", "loading")
    monitor = Monitor(tmp_path, status, Counts(), stop=lambda: None, owns_folder=lambda: True)
    with pytest.raises(OutputError):
        async with monitor:
            raise OutputError(os.fsdecode(b"\xff.jsonl: no space left"))
    assert seen(tmp_path).error == "\\udcff.jsonl: no space left"
