import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from penstock.engines.worker_engine import StuckWatch


@pytest.fixture
def child():
    """Starts a program that says when it is where it should be."""
    started = []

    def start(program):
        process = subprocess.Popen(
            [sys.executable, "-c", program], stdout=subprocess.PIPE, stdin=subprocess.PIPE
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline()
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


SLEEPS = "import sys; print(1, flush=True); sys.stdin.read()"
WORKS = "import threading\nprint(1, flush=True)\nwhile True: pass"


def asleep(process):
    """Wait until its one thread sleeps."""
    while b") S " not in Path(f"/proc/{process.pid}/stat").read_bytes():
        os.sched_yield()


def test_one_that_sleeps_all_the_while_is_stuck(child):
    process = child(SLEEPS)
    asleep(process)
    watched = StuckWatch(process.pid, 3)
    assert [watched.is_stuck() for _ in range(5)] == [False, False, False, True, True]
    watched.forget()
    assert [watched.is_stuck() for _ in range(4)] == [False, False, False, True]


def test_one_that_works_or_is_stopped_or_gone_is_not(child):
    process = child(WORKS)
    watched = StuckWatch(process.pid, 3)
    assert not any(watched.is_stuck() for _ in range(20))
    process.send_signal(signal.SIGSTOP)
    os.waitpid(process.pid, os.WUNTRACED)
    assert not any(watched.is_stuck() for _ in range(20))
    process.kill()
    process.wait()
    assert not any(watched.is_stuck() for _ in range(20))
