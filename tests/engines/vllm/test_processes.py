"""This process while vLLM's processes start, and the guard on processes that carry its mark."""

import inspect
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from penstock.engines.vllm import processes
from penstock.engines.vllm.processes import (
    MARK,
    Guard,
    marked,
    processes_start,
    shared_memory_of,
)

PATIENCE = 20.0
HOLDER = """
import mmap, os, sys, time
with open(sys.argv[1], "w+b") as file:
    file.truncate(4096)
    held = mmap.mmap(file.fileno(), 4096)
print("here", flush=True)
time.sleep(600)
"""
PARENT = """
import subprocess, sys, time, os
from penstock.engines.vllm.processes import MARK, Guard
mark, folder, file, holder = sys.argv[1:]
Guard(mark, folder)
subprocess.Popen([sys.executable, "-c", holder, file], env={**os.environ, MARK: mark}).wait()
"""


def test_they_are_marked_and_take_no_notice_of_ctrl_c(tmp_path):
    before = dict(os.environ)
    with processes_start("a mark", str(tmp_path)):
        assert os.environ[MARK] == "a mark"
        assert signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    assert dict(os.environ) == before
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_the_main_module_is_hidden_also_from_those_who_looked_at_it_before(tmp_path):
    main = sys.modules["__main__"]
    file, spec = main.__file__, main.__spec__
    codes = []
    for name in ("one.py", "other.py"):  # of no module: all modules are gone through
        (tmp_path / name).touch()
        codes.append(compile("", str(tmp_path / name), "exec"))
    inspect.getmodule(codes[0])  # remembers where each module's file is
    with processes_start("a mark", str(tmp_path)):
        assert getattr(main, "__file__", None) is None
        inspect.getmodule(codes[1])
    assert (main.__file__, main.__spec__) == (file, spec)


@pytest.fixture
def mark():
    return uuid.uuid4().hex


@pytest.fixture
def shared(mark):
    path = Path(f"/dev/shm/penstock-test-{mark}")
    yield path
    path.unlink(missing_ok=True)


def wait_until(so):
    patience = time.monotonic() + PATIENCE
    while not so():
        assert time.monotonic() < patience
        time.sleep(0.005)


def test_what_carries_the_mark_ends_with_its_shared_memory(tmp_path, mark, shared, monkeypatch):
    monkeypatch.setattr(processes, "_forget", lambda name: None)  # it was never told of this file
    standing_by = Guard(mark, str(tmp_path / "folder"))
    (tmp_path / "folder").mkdir()
    argv = [sys.executable, "-c", HOLDER, shared]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, env={**os.environ, MARK: mark}) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline()
        assert marked(mark) == [holder.pid]
        assert shared_memory_of([holder.pid]) == {str(shared)}
        standing_by.note_shared_memory()
        standing_by.end()
    assert marked(mark) == []
    assert not shared.exists()
    assert not (tmp_path / "folder").exists()
    standing_by.end()


def test_semaphores_are_shared_memory_too():
    before = shared_memory_of([os.getpid()])
    lock = multiprocessing.get_context("spawn").Lock()
    (held,) = shared_memory_of([os.getpid()]) - before
    assert Path(held).name.startswith("sem.")
    del lock


def test_a_killed_parent_leaves_nothing(tmp_path, mark, shared):
    folder = tmp_path / "folder"
    folder.mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, mark, folder, shared, HOLDER], stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline()
        (holder,) = marked(mark)
        parent.kill()
    wait_until(lambda: not folder.exists())
    assert not shared.exists()
    assert holder not in marked(mark)
