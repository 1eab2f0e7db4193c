"""A time limit that many tasks share, with one timer for all.

`asyncio.timeout` and aiohttp set a timer for each task, which takes 7 % of the time of a request to
a fast server.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Any


class Deadline:
    """Within `with deadline:` a task has `seconds`; then it gets a `TimeoutError`, as
    `asyncio.timeout` raises it.

    One object serves all tasks of an event loop. A task may enter it once at a time.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        # In order of expiry: all tasks have the same limit.
        self._running: dict[asyncio.Task[Any], tuple[float, int]] = {}
        self._late: dict[asyncio.Task[Any], int] = {}
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> None:
        task = asyncio.current_task(self._loop)
        assert task is not None
        at = self._loop.time() + self._seconds
        self._running[task] = at, task.cancelling()
        if self._timer is None:
            self._timer = self._loop.call_at(at, self._look)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        task = asyncio.current_task(self._loop)
        assert task is not None
        if self._running.pop(task, None) is None:
            cancellations = self._late.pop(task)
            # A task that somebody else has cancelled as well stays cancelled.
            if task.uncancel() <= cancellations and kind is asyncio.CancelledError:
                raise TimeoutError from error

    def _look(self) -> None:
        now = self._loop.time()
        self._timer = None
        for task, (at, cancellations) in list(self._running.items()):
            if at > now:
                self._timer = self._loop.call_at(at, self._look)
                return
            del self._running[task]
            self._late[task] = cancellations
            task.cancel()
