"""Signals that end a job early: the first drains it, the second stops it."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class JobInterrupted(KeyboardInterrupt):
    """A job was stopped by a signal, whose number is `signal`. What it had done is kept, as the text says."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.signal = number


class Interrupts:
    """Handles SIGINT and SIGTERM inside `with`, in the main thread only; elsewhere it does nothing.

    Make it before the event loop runs, and call `restore` when that has closed: after a signal further ones are ignored
    until then, as one that comes while the loop closes would tear it.

    `received` is the number of the signal that came. Until `on_first` is set, and from the second signal on,
    the task that entered is cancelled; else the first signal calls `on_first`.
    """

    def __init__(self, *, enabled: bool) -> None:
        self.received: int | None = None
        self.on_first: Callable[[], None] | None = None
        self._enabled = enabled and threading.current_thread() is threading.main_thread()
        self._previous: dict[int, Any] = {n: signal.getsignal(n) for n in _SIGNALS} if self._enabled else {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[Any] | None = None

    def __enter__(self) -> Interrupts:
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        if self._enabled:
            for number in _SIGNALS:
                asyncio.get_running_loop().add_signal_handler(number, self._handle, number)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._enabled:
            for number in _SIGNALS:
                asyncio.get_running_loop().remove_signal_handler(number)
                if self.received is not None:
                    signal.signal(number, signal.SIG_IGN)
            if self.received is None:
                self.restore()

    def restore(self) -> None:
        """Give the signals back to those who handled them before."""
        for number, handler in self._previous.items():
            if handler is not None:  # None: it was not set from Python, and cannot be
                signal.signal(number, handler)

    def pass_on(self, number: int) -> None:
        """Act on a signal that came in another thread than that of the job."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has closed: the job is over
                self._loop.call_soon_threadsafe(self._handle, number)

    def _handle(self, number: int) -> None:
        if self.received is None and self.on_first is not None:
            self.received = number
            print("Finishing the rows in flight; once more stops at once.", file=sys.stderr, flush=True)
            self.on_first()
        else:
            self.received = self.received or number
            if self._task is not None:
                self._task.cancel()
