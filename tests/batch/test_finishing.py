"""The end of a job, interrupted before each call that changes a file: by a kill, and by a disk that
fails.
"""

import errno
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest

import penstock
from penstock.batch.write import sinks
from penstock.batch.write.state import State
from penstock.errors import OutputError

CALLS = (
    "open",
    "write",
    "fsync",
    "replace",
    "rename",
    "link",
    "unlink",
    "mkdir",
    "rmdir",
    "chmod",
    "truncate",
)
CHANGING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
SOCKETS = shutil.ignore_patterns("*.sock")  # no file that can be copied
FORMS = ("out.jsonl", "out.csv", "out.parquet", "out/")


@pytest.fixture(autouse=True)
def _exact(monkeypatch):
    monkeypatch.setattr(sinks, "PART_ROWS", 8)
    monkeypatch.setattr("penstock.batch.pipeline.pipeline.LONGEST_PAUSE", 0.0)
    clock = SimpleNamespace(perf_counter_ns=lambda: 0)
    monkeypatch.setattr("penstock.batch.pipeline.pipeline.time", clock)


@pytest.fixture
def home(tmp_path):
    folder = tmp_path / "home"
    folder.mkdir()
    rows = ({"id": number, "text": f"text {number}"} for number in range(30))
    (folder / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


async def run(home, name, *, letters=False, **options):
    return await penstock.arun(
        home / "in.jsonl",
        f"{home}/{name}",
        engine="simulated",
        engine_kwargs={"max_num_seqs": 4, "error_rate": 0.1},
        prompt="{text}",
        progress=False,
        max_attempts=1,
        dead_letter=home / "failed.jsonl" if letters else None,
        **options,
    )


class Calls:
    """Does `at(number)` before each call that changes a file, while `counting`."""

    def __init__(self, patch, at):
        self.at = at
        self.number = 0
        self.counting = True
        for name in CALLS:
            patch.setattr(os, name, self.watched(name, getattr(os, name)))

    def watched(self, name, real):
        def call(*args, **kwargs):
            if self.counting and (name != "open" or args[1] & CHANGING):
                self.counting = False
                try:
                    self.at(self.number)
                finally:
                    self.counting = True
                self.number += 1
            return real(*args, **kwargs)

        return call


def content(home, name):
    """All outputs of a job."""
    output = home / name
    rows = (
        output.read_bytes()
        if output.suffix in (".jsonl", ".csv")
        else pq.read_table(output).to_pylist()
    )
    letters = home / "failed.jsonl"
    return rows, letters.read_bytes() if letters.exists() else None


def check_clean(home, name):
    """Nothing is left but what a complete job keeps."""
    kept = {path.name for path in Path(f"{home}/{name.rstrip('/')}.penstock").iterdir()}
    assert {file for file in kept if not file.startswith("parts-")} == {
        "manifest.json",
        "lock",
        "status.json",
    }
    assert len(kept) == 3
    allowed = {"in.jsonl", "failed.jsonl", name.rstrip("/"), f"{name.rstrip('/')}.penstock"}
    assert {path.name for path in home.iterdir()} <= allowed
    if name == "out/":
        assert [path.name for path in (home / name).iterdir()] == ["part-00000.parquet"]


@pytest.mark.slow
@pytest.mark.parametrize("retry", [False, True])
@pytest.mark.parametrize("letters", [False, True])
@pytest.mark.parametrize("name", FORMS)
async def test_a_kill_at_each_step_of_the_end_leaves_nothing(
    home, tmp_path, monkeypatch, name, letters, retry
):
    await run(home, name, letters=letters)
    whole = content(home, name)
    start = tmp_path / "start"
    if not retry:
        shutil.rmtree(f"{home}/{name.rstrip('/')}.penstock")
        for output in (home / name, home / "failed.jsonl"):
            shutil.rmtree(output) if output.is_dir() else output.unlink(missing_ok=True)
    shutil.copytree(home, start, ignore=SOCKETS)

    real = State.publish
    with monkeypatch.context() as patch:
        calls = Calls(
            patch,
            lambda number: shutil.copytree(home, tmp_path / f"killed-{number}", ignore=SOCKETS),
        )
        calls.counting = retry  # a retry begins with the output's way back

        def publish(*args, **kwargs):
            calls.counting = True
            return real(*args, **kwargs)

        patch.setattr(State, "publish", publish)
        await run(home, name, letters=letters, retry_failed=retry)
    assert calls.number > 15
    check_clean(home, name)
    for number in range(calls.number):
        shutil.rmtree(home)
        shutil.copytree(tmp_path / f"killed-{number}", home)
        await run(home, name, letters=letters)
        assert content(home, name) == whole, number
        check_clean(home, name)
        assert (await run(home, name, letters=letters)).already_complete


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "code"), [*((name, errno.ENOSPC) for name in FORMS), ("out.jsonl", errno.EROFS)]
)
async def test_a_disk_that_fails_at_any_call_stops_the_job(
    home, tmp_path, monkeypatch, caplog, name, code
):
    """The same command goes on with it, and takes nothing for damaged."""
    await run(home, name, letters=True)
    whole = content(home, name)
    shutil.rmtree(f"{home}/{name.rstrip('/')}.penstock")
    for output in (home / name, home / "failed.jsonl"):
        shutil.rmtree(output) if output.is_dir() else output.unlink()
    start = tmp_path / "start"
    shutil.copytree(home, start, ignore=SOCKETS)
    fatal = finished = 0
    while not finished:
        shutil.rmtree(home)
        shutil.copytree(start, home)

        def fail(number, fatal=fatal):
            if number >= fatal:
                raise OSError(code, os.strerror(code))

        with monkeypatch.context() as patch:
            calls = Calls(patch, fail)
            try:
                await run(home, name, letters=True)
                finished = calls.number <= fatal
                assert finished, fatal
                said = ""
            except OutputError as error:
                said = str(error)
        if not finished:
            assert os.strerror(code) in said, (fatal, said)
            await run(home, name, letters=True)
        assert content(home, name) == whole, fatal
        check_clean(home, name)
        fatal += 1
    assert fatal > 40
    assert not caplog.records
