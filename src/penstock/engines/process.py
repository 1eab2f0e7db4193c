"""An engine's child process: its start, the messages on its pipe, and its end.

The pipe is a Unix socket pair that carries length-prefixed msgpack. A message from the child is
everything one engine step produced, so that one wake-up of the event loop carries every request's
new tokens.

The child ends when the pipe closes, and cannot outlive its parent. A child inside a long native
call does not see its pipe close. So the kernel is asked to kill it with its parent, and a thread
watches the pipe, for systems whose kernel cannot be asked (`end_with_parent`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, cast

from msgspec import Struct, ValidationError, msgpack

from penstock.cores import Cores, pin
from penstock.engines.base import Capabilities
from penstock.engines.beams import Beams
from penstock.errors import EngineDeadError, PenstockError, RequestError
from penstock.openai.media.parts import Videos
from penstock.types import Delta, Sampling

LENGTH_BYTES = 4
_SOCKET_BUFFER = 1 << 22
_READ_SIZE = 1 << 20
_STOP_GRACE_SECONDS = 5.0
_GRACE_SECONDS = 4.0
"""How long a child has for an orderly end after its pipe has closed."""
_PR_SET_PDEATHSIG = 1
_SENT = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Signals that somebody sent: a fault of the process itself raises others."""


class Submit(Struct, tag="submit", array_like=True):
    """A prompt to continue: text or token ids. `marks`, `batch`, `image_mark`, `video_mark` and
    `beams` are as in `GenerateRequest`. `at` is when the request was made, in seconds of the
    machine's monotonic clock. `images` holds the bytes of files; a video in `videos` is the bytes
    of its file, or of the files of its frames.
    """

    id: int
    prompt: str | list[int]
    sampling: Sampling
    adapter: str | None
    stream: bool
    special_tokens: bool
    marks: tuple[str, ...] = ()
    batch: bool = False
    at: float = 0.0
    images: tuple[bytes, ...] = ()
    videos: Videos = ()
    image_mark: str = ""
    video_mark: str = ""
    beams: Beams | None = None


class Abort(Struct, tag="abort", array_like=True):
    """Tells the worker to give a request up."""

    id: int


class Call(Struct, tag="call", array_like=True):
    """Call a method of the worker; answered by `Reply` or `Failed` under the same id."""

    id: int
    method: str
    args: list[Any]


class Ready(Struct, tag="ready", array_like=True):
    """The model is loaded. `special_tokens` are those that its chat template, or one of several by
    name, may name.
    """

    capabilities: Capabilities
    chat_template: str | dict[str, str] | None
    special_tokens: dict[str, str]


class Step(Struct, tag="step", array_like=True):
    """Everything that one turn of the worker's loop produced, by request id."""

    deltas: list[tuple[int, Delta]]


class Reply(Struct, tag="reply", array_like=True):
    """The result of a `Call`."""

    id: int
    value: Any


class Failed(Struct, tag="failed", array_like=True):
    """A request, a call, or (id 0) the loading failed. `kind` is a `PenstockError.kind`."""

    id: int
    kind: str
    message: str
    param: str | None = None

    @classmethod
    def of(cls, id: int, error: PenstockError) -> Failed:
        """The message for an error of ours."""
        return cls(id, error.kind, str(error), error.param)


ToParent = Ready | Step | Reply | Failed

encode = msgpack.Encoder().encode
decode_to_parent = msgpack.Decoder(ToParent).decode


def refusal_of(data: bytes | bytearray) -> Failed:
    """The answer to a message whose values have wrong types: the request is to blame."""
    number: int = msgpack.decode(data)[1]
    return Failed(
        number, RequestError.kind, "a value of the request has a wrong type, or is out of its range"
    )


def python(*arguments: str) -> list[str]:
    """The command that runs Python with `arguments` in a child. No module comes from the folder in
    which it runs: a `types.py` beside the user's rows would be taken for Python's.
    """
    return [sys.executable, "-P", *arguments]


def with_docstrings() -> dict[str, str]:
    """The environment of a child that may import OpenVINO, which reads docstrings: this process's,
    but PYTHONOPTIMIZE=2 takes them away.
    """
    found = dict(os.environ)
    if found.get("PYTHONOPTIMIZE"):
        found["PYTHONOPTIMIZE"] = "1"
    return found


def modules_of_this() -> dict[str, str]:
    """The environment of a child that finds the modules that this process finds."""
    return {**with_docstrings(), "PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path)}


_Spawn = Callable[[], "subprocess.Popen[bytes]"]
_wanted: dict[int, SimpleQueue[tuple[_Spawn, Future[subprocess.Popen[bytes]]]]] = {}
"""The children that the starting thread is to start, by process id: a fork inherits no threads."""


def _spawned(spawn: _Spawn) -> Future[subprocess.Popen[bytes]]:
    """The child that `spawn` starts, from a thread that lives as long as this process: the kernel
    takes the thread that started a child for its parent, and ends the child with it.
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
    """A child that runs `python -m MODULE FD PARENT` on the `cores`, and calls `end_with_parent`
    with `FD` and `PARENT`.

    `on_message` gets each message's bytes. `on_death` gets one line that says why the child ended;
    `killed` then says whether somebody sent it a signal that ended it.
    """

    def __init__(
        self,
        module: str,
        on_message: Callable[[bytes], None],
        on_death: Callable[[str], None],
        cores: Cores | None = None,
    ) -> None:
        self.killed = False
        self._module = module
        self._on_message = on_message
        self._on_death = on_death
        self._cores = cores
        self._buffer = bytearray()
        self._outgoing: list[bytes] = []
        self._child: subprocess.Popen[bytes] | None = None
        self._transport: asyncio.Transport | None = None
        self._closed = asyncio.Event()
        self._cause: asyncio.Future[str] | None = None
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
            command = python("-m", self._module, str(theirs.fileno()), str(os.getpid()))
            environment = modules_of_this()
            fds = (theirs.fileno(),)

            def spawn() -> subprocess.Popen[bytes]:
                child = subprocess.Popen(
                    command, pass_fds=fds, stdin=subprocess.DEVNULL, env=environment
                )
                if self._cores is not None:
                    pin(child.pid, self._cores)
                return child

            spawned = _spawned(spawn)
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

    async def reported(self) -> None:
        """Return once `on_death` has been called, if the child has died."""
        if self._cause is not None:
            await asyncio.wait([self._cause])

    async def stop(self) -> None:
        """Close the pipe and wait for the child to end; kill it after five seconds."""
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
        self._buffer += data
        _deliver(self._buffer, self._on_message)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._outgoing.clear()
        self._closed.set()
        # After `stop` nobody asks for the cause, and the child may take a while to end.
        if not self._stopping:
            # The pipe closes a moment before the child can be reaped: the event loop does not wait
            # for that.
            self._cause = asyncio.get_running_loop().run_in_executor(None, self._cause_of_death)
            self._cause.add_done_callback(self._report_death)

    def _flush(self) -> None:
        outgoing, self._outgoing = self._outgoing, []
        if self._transport is not None and outgoing:
            self._transport.write(b"".join(outgoing))

    def _report_death(self, cause: asyncio.Future[str]) -> None:
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


class WorkerPipe:
    """The child's end of the pipe. `decode` reads a message of the parent."""

    def __init__(self, fd: int, decode: Callable[[bytes], Any]) -> None:
        self._socket = socket.socket(fileno=fd)
        self._decode = decode
        self._buffer = bytearray()

    def read(self, wait: bool, at_most: float = 0.0) -> list[Any]:
        """All messages that are there. With `wait`, waits for at least one message; else for at
        most `at_most` seconds.

        A message that cannot be decoded is replaced by the refusal to send back. Raises `EOFError`
        once the parent is gone.
        """
        messages: list[Any] = []
        if at_most and not wait:
            select.select([self._socket], [], [], at_most)
        while True:
            try:
                data = self._socket.recv(
                    _READ_SIZE, 0 if wait and not messages else socket.MSG_DONTWAIT
                )
            except BlockingIOError:
                return messages
            if not data:
                raise EOFError
            self._buffer += data
            _deliver(self._buffer, lambda data: messages.append(self._decoded(data)))

    def write(self, messages: Iterable[ToParent]) -> None:
        """Send messages in one write. Waits if the parent does not keep up."""
        parts: list[bytes] = []
        for message in messages:
            data = encode(message)
            parts += (len(data).to_bytes(LENGTH_BYTES, "little"), data)
        self._socket.sendall(b"".join(parts))

    def _decoded(self, data: bytes) -> Any:
        try:
            return self._decode(data)
        except ValidationError:
            return refusal_of(data)


def _deliver(buffer: bytearray, take: Callable[[bytes], None]) -> None:
    """Take the complete messages from the beginning of a buffer, and pass each to `take`."""
    at = 0
    while len(buffer) - at >= LENGTH_BYTES:
        end = at + LENGTH_BYTES + int.from_bytes(buffer[at : at + LENGTH_BYTES], "little")
        if len(buffer) < end:
            break
        take(bytes(buffer[at + LENGTH_BYTES : end]))
        at = end
    del buffer[:at]


def die_with_parent(parent: int) -> None:
    """On Linux, let the kernel kill this process when the thread of `parent` that started it ends.
    That stays so after `exec`, and does not apply to this process's children.
    """
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # the parent ended before the kernel was asked
        os._exit(1)


def end_with_parent(fd: int, parent: int) -> None:
    """Call this first in a child of `EngineProcess`: `fd` is its pipe, `parent` the parent's id."""
    die_with_parent(parent)
    threading.Thread(target=_watch, args=(fd,), name="penstock-parent-watch", daemon=True).start()


def leave_signals_to_parent() -> None:
    """Ignore the signals that ask a whole group of processes to end (Ctrl-C, a terminal that
    closes, a process manager): the parent needs this process to drain, then closes the pipe.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def _watch(fd: int) -> None:
    closed = getattr(select, "POLLRDHUP", select.POLLHUP)
    poll = select.poll()
    poll.register(fd, closed)
    poll.poll()
    time.sleep(_GRACE_SECONDS)
    os._exit(1)
