"""The socket in the state directory of a running job: what others ask it, and how.

A question is a line of JSON, `{"do": WORD}`, and so is its answer. The socket is in the directory
that the job has locked, so whatever answers there is the job: no number of a process is trusted.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from penstock.batch.monitor import status as statuses
from penstock.batch.monitor.status import ALIVE, Status
from penstock.errors import JobError

FILE = "control.sock"
_LONGEST_PATH = 100
_SECONDS = 10.0
_MOST_BYTES = 1 << 24
_log = logging.getLogger(__name__)

Answer = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]


class ControlSocket:
    """Answers questions in the event loop, from `start` to `stop`. `answer` says what.

    Where no socket can be made (some network file systems have none), the job runs without.
    """

    def __init__(self, folder: Path, answer: Answer) -> None:
        self._folder = folder
        self._answer = answer
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        try:
            with _short(self._folder) as path:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)  # of an earlier run: this one holds the lock
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
        """Answer no more. `remove`: the socket is still in the job's own directory."""
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
            pass  # whoever asked has gone, or asked nothing
        finally:
            writer.close()


def ask(folder: Path, word: str, **options: Any) -> dict[str, Any] | None:
    """What the running job in this state directory answers; None if none runs. Raises `JobError`
    if it does not answer within 10 s.
    """
    with socket.socket(socket.AF_UNIX) as made:
        made.settimeout(_SECONDS)
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


def live(folder: Path) -> Status | None:
    """The status of a job now, asked of it if it runs."""
    found = statuses.load(folder)
    if found is None or found.state not in ALIVE:
        return found
    answer = ask(folder, "status")
    if answer is not None:
        return msgspec.convert(answer, Status)
    found = statuses.load(folder) or found  # it may have ended in between
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
