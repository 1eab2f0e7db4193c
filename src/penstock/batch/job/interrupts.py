"""Signals that end a job early: the first drains it, the second stops it."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Any

from penstock.observability import say


class JobInterrupted(KeyboardInterrupt):
    """A job was stopped by a signal, whose number is `signal`. What it had done is kept, as the
    text says.
    """

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.signal = number


class Interrupts:
    """Handles the given signals from its making until `restore`, if made in the main thread; else
    it does nothing.

    The job runs inside `with`, in an event loop of any thread. A signal that comes before counts
    from there on; one that comes after is ignored, as it would tear the loop that closes.

    `received` is the number of the signal that came. Until `on_first` is set, and from the second
    signal on, the task that entered is cancelled; else the first signal calls `on_first`.
    """

    def __init__(self, *numbers: signal.Signals) -> None:
        self.received: int | None = None
        self.on_first: Callable[[], None] | None = None
        self._came: deque[int] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[Any] | None = None
        self._previous: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.getsignal(number) for number in numbers}
            for number in numbers:
                signal.signal(number, lambda number, _: self._pass_on(number))

    def __enter__(self) -> Interrupts:
        self._task = asyncio.current_task()
        self._loop = asyncio.get_running_loop()
        self._loop.call_soon(self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._task = None

    def restore(self) -> None:
        """Give the signals back to those who handled them before."""
        for number, handler in self._previous.items():
            if handler is not None:  # None: it was not set from Python, and cannot be
                signal.signal(number, handler)

    def _pass_on(self, number: int) -> None:
        self._came.append(number)
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has closed: the job is over
                self._loop.call_soon_threadsafe(self._handle)

    def _handle(self) -> None:
        while self._came:
            number = self._came.popleft()
            if self._task is None:
                continue
            if self.received is None and self.on_first is not None:
                self.received = number
                say("Finishing the rows in flight; once more stops at once.")
                self.on_first()
            else:
                self.received = self.received or number
                self._task.cancel()
