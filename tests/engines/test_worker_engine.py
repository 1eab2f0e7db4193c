import asyncio
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from penstock.engines.process import Abort, EngineProcess
from penstock.engines.token_engine import GenerateRequest
from penstock.engines.worker_engine import StuckWatch, WorkerEngine
from penstock.errors import EngineDeadError, EngineStartError
from penstock.types import Sampling


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


WORKER = """
import sys
import threading
from msgspec import msgpack
from penstock.engines.base import Capabilities
from penstock.engines.process import *
from penstock.types import Delta

pipe = WorkerPipe(int(sys.argv[1]), msgpack.Decoder(Abort | Call | Submit).decode)
try:
    pipe.read(wait=True)
    pipe.write([Ready(Capabilities(frozenset({"completions"}), 64, 4), None, {})])
    while True:
        for message in pipe.read(wait=True):
            if isinstance(message, Submit) and message.prompt == "short":
                pipe.write([Step([(message.id, Delta(text="a", finish_reason="stop"))])])
            elif isinstance(message, Submit):
                pipe.write([Step([(message.id, Delta(text="a"))])])
except EOFError:
    pass
"""


class Small(WorkerEngine):
    """Its process answers "short", begins to answer other prompts, and answers no call."""

    name = "small"
    worker = "worker_for_test"

    async def _load_message(self):
        return Abort(0)


@pytest.fixture
async def small(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "worker_for_test.py").write_text(WORKER)
    engine = Small("m")
    await engine.start()
    yield engine
    await engine.stop()


@pytest.fixture
async def between(small, monkeypatch):
    """Kills a process, whose pipe is closed then. The cause of its death is known after `set`."""
    gate = threading.Event()
    cause = EngineProcess._cause_of_death
    monkeypatch.setattr(EngineProcess, "_cause_of_death", lambda self: gate.wait() and cause(self))

    async def die():
        process = small._process
        process.kill()
        await process._closed.wait()
        return gate

    yield die
    gate.set()


def asked(engine, prompt):
    return engine.continue_prompt(GenerateRequest(prompt, Sampling()))


async def test_an_answered_request_is_not_under_way_however_late_it_is_taken(small):
    batches = asked(small, "short")
    (delta,) = await anext(batches)
    assert delta.finish_reason == "stop"  # and its consumer stalls
    assert small.idle_seconds > 0
    assert not small._mailboxes
    begun = asked(small, "long")
    await anext(begun)
    assert small.idle_seconds == 0
    await begun.aclose()
    assert small.idle_seconds > 0
    await batches.aclose()


async def test_a_request_given_up_just_after_a_death_ends_as_it_was_ended(small, between):
    begun, call = asked(small, "long"), asyncio.create_task(small.check_health())
    await anext(begun)
    await between()
    await begun.aclose()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call


async def test_a_restart_just_after_a_death_hides_neither_cause_nor_suspects(small, between):
    begun = asked(small, "long")
    await anext(begun)
    killed = await between()
    with pytest.raises(EngineDeadError) as late:
        await anext(asked(small, "short"))
    assert not late.value.suspects
    restart = asyncio.create_task(small.restart())
    await asyncio.sleep(0)
    killed.set()
    with pytest.raises(EngineDeadError, match="SIGKILL") as died:
        await anext(begun)
    assert died.value.suspects
    assert died.value.killed
    await restart
    assert (await anext(asked(small, "short")))[0].text == "a"


async def test_a_stop_after_a_death_and_a_start_tells_no_old_cause(small):
    small._process.kill()
    with pytest.raises(EngineDeadError, match="SIGKILL"):
        await small.check_health()
    await small.start()
    await small.stop()
    with pytest.raises(EngineDeadError, match="the small engine is not running"):
        await small.check_health()


async def test_a_death_that_no_request_notices_is_told(small):
    told = asyncio.Event()
    small.on_death = told.set
    small._process.kill()
    await asyncio.wait_for(told.wait(), 10)
    await small.start()
    told.clear()
    await small.stop()
    assert not told.is_set()


async def test_a_stop_during_a_start_leaves_no_process(small, monkeypatch):
    await small.stop()
    begun, gate, started = asyncio.Event(), asyncio.Event(), []
    start = EngineProcess.start

    async def slow(self):
        begun.set()
        await gate.wait()
        await start(self)
        started.append(self)

    monkeypatch.setattr(EngineProcess, "start", slow)
    starting = asyncio.create_task(small.start())
    await begun.wait()
    await small.stop()
    gate.set()
    with pytest.raises(EngineStartError, match="the small engine is not running"):
        await starting
    (process,) = started
    assert process._child is None  # it has ended
    assert not small._calls
