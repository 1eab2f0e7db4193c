"""Shows a running job to other processes, which steer it by the socket in its state directory.

A question is a line of JSON, `{"do": WORD}`, and so is its answer. The socket is in the directory
that the job has locked, so the process that answers there is the job: no process id is trusted.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import msgspec

from penstock.batch.job.result import Counts, ending
from penstock.batch.monitor import status as statuses
from penstock.batch.monitor.status import ALIVE, State, Status
from penstock.errors import JobError, printable

if TYPE_CHECKING:
    from penstock.batch.flow import Flow

FILE = "control.sock"
_LONGEST_PATH = 100
_SECONDS = 10.0
_MOST_BYTES = 1 << 24
_log = logging.getLogger(__name__)

Answer = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]


class ControlSocket:
    """Answers questions in the event loop, from `start` to `stop`. `answer` makes the answers.

    If no socket can be made (some network file systems have none), the job runs without one.
    """

    def __init__(self, folder: Path, answer: Answer) -> None:
        self._folder = folder
        self._answer = answer
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        try:
            with _short(self._folder) as path:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)  # an earlier run's: this run holds the lock
                made = socket.socket(socket.AF_UNIX)
                try:
                    made.bind(path)
                    os.chmod(path, 0o600)
                except OSError:
                    made.close()
                    raise
            self._server = await asyncio.start_unix_server(self._serve, sock=made)
        except OSError as error:
            _log.debug("No control socket in %s: %s", self._folder, error)

    async def stop(self, *, remove: bool = True) -> None:
        """Answer no more. `remove`: delete the socket, as the directory is still the job's."""
        if self._server is not None:
            self._server.close()
        if self._server is not None and remove:
            with contextlib.suppress(OSError):
                (self._folder / FILE).unlink()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_SECONDS):
                asked = msgspec.json.decode(await reader.readline(), type=dict[str, Any])
                writer.write(msgspec.json.encode(await self._answer(asked), enc_hook=str) + b"\n")
                await writer.drain()
        except (OSError, TimeoutError, ValueError):
            pass  # the client has gone, or sent no question
        finally:
            writer.close()


def ask(
    folder: Path, word: str, *, patience_s: float = _SECONDS, **options: Any
) -> dict[str, Any] | None:
    """The answer of the job that runs in this state directory; None if no job runs. Raises
    `JobError` if the job does not answer in time.
    """
    with socket.socket(socket.AF_UNIX) as made:
        made.settimeout(patience_s)
        try:
            with _short(folder) as path:
                made.connect(path)
        except OSError:
            return None
        try:
            made.sendall(msgspec.json.encode({"do": word, **options}) + b"\n")
            with made.makefile("rb") as lines:
                line = lines.readline(_MOST_BYTES)
            return msgspec.json.decode(line, type=dict[str, Any])
        except (OSError, ValueError):
            raise JobError(f"the job in {folder} does not answer") from None


def live(folder: Path, *, patience_s: float = _SECONDS) -> Status | None:
    """The status of a job now; a running job is asked for it. Raises `JobError` if the job does not
    answer in time, or is of another version and answers in another form.
    """
    found = statuses.load(folder)
    if found is None or found.state not in ALIVE:
        return found
    answer = ask(folder, "status", patience_s=patience_s)
    if answer is not None:
        try:
            return msgspec.convert(answer, Status)
        except msgspec.ValidationError as error:
            raise JobError(f"the job in {folder} is of another version: {error}") from None
    found = statuses.load(folder) or found  # the job may have ended in between
    silent = (folder / FILE).exists()  # a socket that nobody listens to
    if found.state in ALIVE and (silent or statuses.is_stale(found)):
        found.state = "interrupted"
    return found


@contextlib.contextmanager
def _short(folder: Path) -> Iterator[str]:
    """The path of the socket, short enough for the system."""
    path = os.fspath(folder / FILE)
    if len(os.fsencode(path)) <= _LONGEST_PATH:
        yield path
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        yield f"/proc/self/fd/{descriptor}/{FILE}"
    finally:
        os.close(descriptor)


_INTERVAL = 1.0
_RECENT = 10


class Monitor:
    """Shows and controls the job with the state directory `folder`, inside `async with`. `stop`
    ends it as a signal would. `owns_folder`: whether the job still has the directory's lock;
    without the lock nothing is written there.

    The caller calls `begin` when rows begin to move, and sets `finished` to False if the job ends
    before all rows are finished.
    """

    def __init__(
        self,
        folder: Path,
        status: Status,
        counts: Counts,
        *,
        stop: Callable[[], None],
        owns_folder: Callable[[], bool],
    ) -> None:
        self._folder = folder
        self._status = status
        self._counts = counts
        self._stop = stop
        self._owns_folder = owns_folder
        self.finished = True
        self._flow: Flow | None = None
        self._paused = False
        self._stopping = False
        self._began = time.monotonic()
        self._recent: deque[tuple[float, int, int]] = deque(maxlen=_RECENT)
        self._socket = ControlSocket(folder, self._answer)
        self._task: asyncio.Task[None] | None = None
        status.pid = os.getpid()
        status.started = time.time()

    def begin(self, flow: Flow) -> None:
        """Watch this flow. A pause or stop that was asked for before applies to it."""
        self._flow = flow
        if self._paused:
            flow.pause()

    async def __aenter__(self) -> Monitor:
        statuses.register(self._folder)
        await self._socket.start()
        self._task = asyncio.create_task(self._write())
        return self

    async def __aexit__(
        self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        await self._socket.stop(remove=self._owns_folder())
        self._recent.clear()  # so that the speeds become those of the whole run
        self._save(ending(error, finished=self.finished), error)

    async def _write(self) -> None:
        while True:
            counts = self._counts
            self._recent.append((time.monotonic(), counts.rows, counts.completion_tokens))
            self._save(self._state())
            await asyncio.sleep(_INTERVAL)

    def _state(self) -> State:
        if self._stopping:
            return "stopping"
        if self._paused:
            return "paused"
        return "loading" if self._flow is None else "running"

    def _save(self, state: State, error: BaseException | None = None) -> None:
        failed = state == "failed" and error is not None
        self._status.error = printable(str(error)) if failed else None
        if self._owns_folder():
            statuses.save(self._folder, self._now(state))

    def _now(self, state: State) -> Status:
        counts, status = self._counts, self._status
        for name in (
            *("rows", "total", "failed", "errors", "resumed", "kept", "from_cache", "deduplicated"),
            *("prompt_tokens", "completion_tokens", "engine_calls"),
        ):
            setattr(status, name, getattr(counts, name))
        now = time.monotonic()
        status.state = state
        status.updated = time.time()
        status.seconds = round(now - self._began, 3)
        before = (self._began, counts.resumed, 0)
        if len(self._recent) > 1:
            before = self._recent[0]
        seconds = max(now - before[0], 1e-3)
        status.rows_per_second = round(max(counts.rows - before[1], 0) / seconds, 3)
        status.tokens_per_second = round((counts.completion_tokens - before[2]) / seconds, 3)
        return status

    async def _answer(self, asked: dict[str, Any]) -> dict[str, Any]:
        word = asked.get("do")
        if word == "tail":
            return {"rows": self._latest(asked.get("after"))}
        if word == "pause" and not self._stopping:
            self._paused = True
            if self._flow is not None:
                self._flow.pause()
        elif word == "resume":
            self._paused = False
            if self._flow is not None:
                self._flow.go_on()
        elif word == "cancel":
            self._stopping = True
            self._stop()
        answer: dict[str, Any] = msgspec.to_builtins(self._now(self._state()))
        return answer

    def _latest(self, after: Any) -> list[dict[str, Any]]:
        rows = [] if self._flow is None else list(self._flow.latest)
        return [
            {
                "number": number,
                "row": index,
                "status": "ok" if outcome.error is None else "error",
                "response": outcome.response,
                "parsed": outcome.parsed,
                "error": None if outcome.error is None else outcome.error.message,
            }
            for number, index, outcome in rows
            if not isinstance(after, int) or number > after
        ]
