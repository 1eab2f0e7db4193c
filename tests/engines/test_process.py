import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from penstock.engines.process import EngineProcess
from penstock.errors import EngineDeadError

ECHO = """
import socket, sys
pipe = socket.socket(fileno=int(sys.argv[1]))
while data := pipe.recv(65536):
    pipe.sendall(data)
"""
EXIT_3 = "import sys; sys.exit(3)"


@pytest.fixture
def module(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(source):
        (tmp_path / "child_for_test.py").write_text(source)
        return "child_for_test"

    return write


class Ends:
    def __init__(self):
        self.messages: asyncio.Queue[bytes] = asyncio.Queue()
        self.death = asyncio.get_running_loop().create_future()

    def process(self, module):
        return EngineProcess(module, self.messages.put_nowait, self.death.set_result)

    async def echo(self, process):
        """What comes back for "a", or why nothing does."""
        process.send(b"a")
        answer = asyncio.ensure_future(self.messages.get())
        await asyncio.wait([answer, self.death], return_when=asyncio.FIRST_COMPLETED)
        return self.death.result() if self.death.done() else await answer


async def test_messages_arrive_whole_and_in_order(module):
    ends = Ends()
    process = ends.process(module(ECHO))
    await process.start()
    sent = [b"", b"a", os.urandom(300_000), b"z" * 70_000]
    for message in sent:
        process.send(message)
    assert [await ends.messages.get() for _ in sent] == sent
    await process.stop()
    assert process.pid is None
    assert not ends.death.done()  # it did not die of itself, and nobody waits for a cause


async def test_no_module_comes_from_the_folder_in_which_it_runs(module, tmp_path, monkeypatch):
    rows = tmp_path / "rows"
    rows.mkdir()
    (rows / "random.py").write_text("raise SystemExit('taken for that of Python')")
    monkeypatch.chdir(rows)
    ends = Ends()
    process = ends.process(module("import random\n" + ECHO))
    await process.start()
    assert await ends.echo(process) == b"a"
    await process.stop()


async def test_a_child_finds_what_an_interactive_parent_finds(module, tmp_path, monkeypatch):
    name = module(ECHO)
    monkeypatch.setattr(sys, "path", ["", *(path for path in sys.path if path != str(tmp_path))])
    monkeypatch.chdir(tmp_path)
    ends = Ends()
    process = ends.process(name)
    await process.start()
    assert await ends.echo(process) == b"a"
    await process.stop()


async def test_a_child_keeps_its_docstrings(module, monkeypatch):
    monkeypatch.setenv("PYTHONOPTIMIZE", "2")
    ends = Ends()
    process = ends.process(module("'kept'; __doc__.upper()\n" + ECHO))
    await process.start()
    assert await ends.echo(process) == b"a"
    await process.stop()


async def test_a_killed_child_is_noticed_with_its_signal(module):
    ends = Ends()
    process = ends.process(module(ECHO))
    await process.start()
    os.kill(process.pid, signal.SIGKILL)
    assert "SIGKILL" in await ends.death
    with pytest.raises(EngineDeadError):
        process.send(b"too late")
    await process.stop()


async def test_a_child_leaves_signals_to_the_whole_group_to_its_parent(module):
    obedient = f"from penstock.engines.process import leave_signals_to_parent as l\nl()\n{ECHO}"
    ends = Ends()
    process = ends.process(module(obedient))
    await process.start()
    process.send(b"it has begun")
    await ends.messages.get()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(process.pid, number)
    process.send(b"drained")
    assert await ends.messages.get() == b"drained"
    await process.stop()


async def test_a_child_that_exits_tells_its_code(module):
    ends = Ends()
    process = ends.process(module(EXIT_3))
    await process.start()
    assert "exit code 3" in await ends.death
    await process.stop()


async def test_a_child_that_ignores_the_closed_pipe_is_killed(module, monkeypatch):
    monkeypatch.setattr("penstock.engines.process._STOP_GRACE_SECONDS", 0.05)
    ends = Ends()
    process = ends.process(module("import signal; signal.pause()"))
    await process.start()
    pid = process.pid
    await process.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


BUSY = """
import ctypes, socket, sys
from penstock.engines.process import end_with_parent
end_with_parent(int(sys.argv[1]), int(sys.argv[2]))
socket.socket(fileno=int(sys.argv[1])).sendall(b"\\1\\0\\0\\0x")
ctypes.{library}(None).sleep(600)
"""


@pytest.mark.parametrize(
    "library", ["PyDLL", "CDLL"]
)  # a call that holds the interpreter's lock, and one that does not
def test_no_child_outlives_a_killed_parent_whatever_it_is_in(module, tmp_path, library):
    module(BUSY.format(library=library))
    outlives_not(tmp_path)


def test_no_child_outlives_a_killed_parent(module, tmp_path):
    module(ECHO)
    outlives_not(tmp_path, waits=False)


def test_a_child_lives_on_when_the_thread_that_wanted_it_has_ended(module):
    module(ECHO)
    loop = asyncio.new_event_loop()

    async def start():
        ends = Ends()
        process = ends.process("child_for_test")
        await process.start()
        return ends, process

    async def use(ends, process):
        process.send(b"alive")
        assert await ends.messages.get() == b"alive"
        await process.stop()

    started: list = []
    thread = threading.Thread(target=lambda: started.append(loop.run_until_complete(start())))
    thread.start()
    thread.join()
    loop.run_until_complete(use(*started[0]))
    loop.close()


async def test_a_start_that_is_given_up_leaves_no_child(module, monkeypatch):
    module(ECHO)
    ends, made = Ends(), []
    popen = subprocess.Popen

    def noted(*args, **kwargs):
        made.append(popen(*args, **kwargs))
        return made[-1]

    monkeypatch.setattr(subprocess, "Popen", noted)
    starting = asyncio.create_task(ends.process("child_for_test").start())
    await asyncio.sleep(0)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert all(child.poll() is not None for child in made)


def outlives_not(tmp_path, waits=True):
    parent = textwrap.dedent(
        f"""
        import asyncio, sys
        sys.path.insert(0, {str(tmp_path)!r})
        from penstock.engines.process import EngineProcess
        async def main():
            there = asyncio.Event()
            process = EngineProcess("child_for_test", lambda message: there.set(), print)
            await process.start()
            if {waits}:
                await there.wait()
            print(process.pid, flush=True)
            await asyncio.sleep(600)
        asyncio.run(main())
        """
    )
    with subprocess.Popen(
        [sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout is not None
        child = int(running.stdout.readline())
        running.kill()
    _wait_until_gone(child)


def test_the_exporter_ends_with_who_started_it(tmp_path):
    sleeper = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
    parent = textwrap.dedent(
        f"""
        from pathlib import Path
        from penstock.engines.openvino.model.exporter import run_python
        run_python("m", ["-c", {sleeper!r}], Path({str(tmp_path)!r}) / "log", print)
        """
    )
    with subprocess.Popen([sys.executable, "-c", parent]) as running:
        child = _child_of(running, sleeper)
        running.kill()
    _wait_until_gone(child)


def _child_of(parent, program):
    """The id of the child that runs `program`, a text, once there is one."""
    while parent.poll() is None:
        for pid in Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split():
            with contextlib.suppress(OSError):
                if Path(f"/proc/{pid}/cmdline").read_text().split("\0")[-2:-1] == [program]:
                    return int(pid)
        time.sleep(0.02)
    raise AssertionError(parent.returncode)


def _wait_until_gone(pid):
    """The child is no longer ours to wait for, so the process table is asked."""
    while True:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        if _is_zombie(pid):
            return


def _is_zombie(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True
