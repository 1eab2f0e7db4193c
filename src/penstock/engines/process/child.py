"""An engine's child process, seen from the parent: start it, exchange messages, notice its death.

The pipe is a Unix socket pair that carries length-prefixed msgpack. A message from the child is
everything one engine step produced, so that one wake-up of the event loop carries every request's
new tokens. The child ends when the pipe closes, and is killed with its parent (`parent_death.py`),
so it cannot outlive that, whatever happens.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import cast

from penstock.errors import EngineDeadError

LENGTH_BYTES = 4
_SOCKET_BUFFER = 1 << 22
_STOP_GRACE_SECONDS = 5.0
_SENT = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Signals that a process does not get for what it does itself."""


_Spawn = Callable[[], "subprocess.Popen[bytes]"]
_wanted: dict[int, SimpleQueue[tuple[_Spawn, Future[subprocess.Popen[bytes]]]]] = {}
"""What the thread that starts children is to start. By process: a forked one has no threads of its
parent's.
"""


def _spawned(spawn: _Spawn) -> Future[subprocess.Popen[bytes]]:
    """The child that `spawn` starts, in a thread that lives as long as this process: for the kernel
    a child's parent is the thread that started it, and the child ends with that.
    """
    pid = os.getpid()
    if pid not in _wanted:
        _wanted[pid] = SimpleQueue()
        threading.Thread(
            target=_start_children, args=(_wanted[pid],), name="penstock-spawn", daemon=True
        ).start()
    started: Future[subprocess.Popen[bytes]] = Future()
    _wanted[pid].put((spawn, started))
    return started


def _start_children(wanted: SimpleQueue[tuple[_Spawn, Future[subprocess.Popen[bytes]]]]) -> None:
    while True:
        spawn, started = wanted.get()
        if started.set_running_or_notify_cancel():
            try:
                started.set_result(spawn())
            except BaseException as error:
                started.set_exception(error)


class EngineProcess(asyncio.Protocol):
    """A child that runs `python -m MODULE FD PARENT`, and calls `end_with_parent` with these.

    `on_message` gets each message's bytes, `on_death` one line saying why it ended; `killed` then
    says whether it was sent the signal to.
    """

    def __init__(
        self, module: str, on_message: Callable[[bytes], None], on_death: Callable[[str], None]
    ) -> None:
        self.killed = False
        self._module = module
        self._on_message = on_message
        self._on_death = on_death
        self._buffer = bytearray()
        self._outgoing: list[bytes] = []
        self._child: subprocess.Popen[bytes] | None = None
        self._transport: asyncio.Transport | None = None
        self._closed = asyncio.Event()
        self._stopping = False

    @property
    def pid(self) -> int | None:
        """The child's process id while it runs."""
        return self._child.pid if self._child is not None and self._transport is not None else None

    async def start(self) -> None:
        """Start the child and connect the pipe."""
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BUFFER)
        with theirs:
            # A plain subprocess, not multiprocessing: the user's script needs no `if __name__ ==
            # "__main__"` guard.
            command = [sys.executable, "-m", self._module, str(theirs.fileno()), str(os.getpid())]
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
            fds = (theirs.fileno(),)
            spawned = _spawned(
                lambda: subprocess.Popen(
                    command, pass_fds=fds, stdin=subprocess.DEVNULL, env=environment
                )
            )
            try:
                self._child = await asyncio.wrap_future(spawned)
            except asyncio.CancelledError:
                if not spawned.cancelled():
                    child = spawned.result()
                    child.kill()
                    child.wait()
                ours.close()
                raise
        ours.setblocking(False)
        await asyncio.get_running_loop().create_connection(lambda: self, sock=ours)

    def send(self, message: bytes) -> None:
        """Queue a message. Messages of one turn of the event loop leave in one write."""
        if self._transport is None:
            raise EngineDeadError("the engine process is not running", suspects=False)
        if not self._outgoing:
            asyncio.get_running_loop().call_soon(self._flush)
        self._outgoing += (len(message).to_bytes(LENGTH_BYTES, "little"), message)

    async def stop(self) -> None:
        """Close the pipe and wait for the child to end; kill it if it does not within five
        seconds.
        """
        child = self._child
        if child is None:
            return
        self._stopping = True
        self._flush()
        if self._transport is not None:
            self._transport.close()
            await self._closed.wait()
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(None, child.wait, _STOP_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()
            await loop.run_in_executor(None, child.wait)
        self._child = None

    def kill(self) -> None:
        """End the child at once."""
        if self._child is not None:
            self._child.kill()

    # asyncio.Protocol
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's does not derive from it

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer
        buffer += data
        at = 0
        while len(buffer) - at >= LENGTH_BYTES:
            end = at + LENGTH_BYTES + int.from_bytes(buffer[at : at + LENGTH_BYTES], "little")
            if len(buffer) < end:
                break
            self._on_message(bytes(buffer[at + LENGTH_BYTES : end]))
            at = end
        del buffer[:at]

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._outgoing.clear()
        self._closed.set()
        # Else nobody asks for the cause, and the child may take a while to end.
        if not self._stopping:
            # The pipe closes a moment before the child can be reaped: the event loop does not wait
            # for that.
            cause = asyncio.get_running_loop().run_in_executor(None, self._cause_of_death)
            cause.add_done_callback(self._tell_death)

    def _flush(self) -> None:
        outgoing, self._outgoing = self._outgoing, []
        if self._transport is not None and outgoing:
            self._transport.write(b"".join(outgoing))

    def _tell_death(self, cause: asyncio.Future[str]) -> None:
        if not self._stopping and not cause.cancelled():
            self._on_death(cause.result())

    def _cause_of_death(self) -> str:
        child = self._child
        if child is None:  # it was stopped meanwhile
            return "the engine process ended"
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(0.2)
        code = child.returncode
        if code is None or code == 0:
            return "the engine process ended"
        if code < 0:
            self.killed = -code in _SENT
            return f"the engine process was ended by {signal.Signals(-code).name}"
        return f"the engine process ended with exit code {code}"
