import asyncio
import os
import signal
import subprocess
import sys
import textwrap

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


async def test_a_killed_child_is_noticed_with_its_signal(module):
    ends = Ends()
    process = ends.process(module(ECHO))
    await process.start()
    os.kill(process.pid, signal.SIGKILL)
    assert "SIGKILL" in await ends.death
    with pytest.raises(EngineDeadError):
        process.send(b"too late")
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


def test_no_child_outlives_a_killed_parent(module, tmp_path):
    module(ECHO)
    parent = textwrap.dedent(
        f"""
        import asyncio, sys
        sys.path.insert(0, {str(tmp_path)!r})
        from penstock.engines.process import EngineProcess
        async def main():
            process = EngineProcess("child_for_test", print, print)
            await process.start()
            print(process.pid, flush=True)
            await asyncio.sleep(600)
        asyncio.run(main())
        """
    )
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        child = int(running.stdout.readline())
        running.kill()
    _wait_until_gone(child)


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
