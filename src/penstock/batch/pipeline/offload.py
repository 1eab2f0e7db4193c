"""Calls of code that is not ours, functions, stages and iterators, which may take long and end with
anything. Slow calls are kept off the event loop; quick ones are made in place, which is cheaper.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from penstock.errors import PenstockError, UserCodeError, class_and_text

QUICK_SECONDS = 0.0002
"""A call this quick may run on the event loop: changing threads would cost as much."""
_TRIAL = 32
_QUICK_OF_TRIAL = 24
"""How many calls of a trial must be quick. Not all: on a busy machine a call also waits for the
interpreter's lock.
"""
_MEAN_SECONDS = 0.001
_STALL_SECONDS = 0.05

T = TypeVar("T")
Call = tuple[Callable[[], Any], "asyncio.Future[Any]"]
Made = tuple["asyncio.Future[Any]", Any, Exception | None, float]
"""A call that was made: its future, its result or error, and the seconds it took."""


class Offload:
    """Makes calls in `threads` threads at a time. Make it inside a running event loop.

    Every 32 calls the mode is chosen again: in place, if that is allowed and at least 24 of them
    were quick. `in_place` says whether the next call will be.
    """

    def __init__(self, threads: int = 1, *, in_place: bool = True) -> None:
        self._threads = threads
        self._may_be_in_place = in_place
        self._loop = asyncio.get_running_loop()
        self._waiting: SimpleQueue[Call | None] = SimpleQueue()
        self._done: deque[Made | None] = deque()
        self._woken = False  # the loop, which has not yet looked at what is done
        self._started = 0
        self._pending = 0
        self._in_place = False
        self.in_place = False
        self._judged = self._quick = 0
        self._seconds = 0.0

    @property
    def idle(self) -> bool:
        """Whether no call waits or runs."""
        return not self._pending

    def run(self, call: Callable[..., T], *args: Any) -> T:
        """What the call returns or raises, made in place: only where it may be."""
        began = time.perf_counter()
        try:
            return call(*args)
        finally:
            self._judge(time.perf_counter() - began)

    def submit(self, call: Callable[[], Any]) -> asyncio.Future[Any]:
        """The future of what `call` returns or raises. Cancelling it stops no call that runs, and a
        call that waits for a thread is not made.
        """
        future: asyncio.Future[Any] = self._loop.create_future()
        if self.in_place:
            self._settle(_made(call, future))
            return future
        self._pending += 1
        self.in_place = False
        self._waiting.put((call, future))
        if self._started < min(self._threads, self._pending):
            self._started += 1
            # A daemon, as the call may never return.
            threading.Thread(target=self._work, name="penstock-offload", daemon=True).start()
        return future

    def close(self) -> None:
        """End the threads after the calls that run. Calls that wait are dropped, and their futures
        stay pending.
        """
        with contextlib.suppress(Empty):
            while True:
                self._waiting.get_nowait()
        for _ in range(self._started):
            self._waiting.put(None)

    def _settle(self, made: Made) -> None:
        future, result, error, seconds = made
        self._judge(seconds)
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)

    def _judge(self, seconds: float) -> None:
        self._judged += 1
        self._quick += seconds <= QUICK_SECONDS
        self._seconds += seconds
        stalled = self._in_place and seconds > _STALL_SECONDS
        if self._judged >= _TRIAL or stalled:
            quick = self._quick >= _QUICK_OF_TRIAL and self._seconds <= _MEAN_SECONDS * self._judged
            self._in_place = quick and not stalled and self._may_be_in_place
            self.in_place = self._in_place and not self._pending
            self._judged = self._quick = 0
            self._seconds = 0.0

    # In the threads
    def _work(self) -> None:
        while (item := self._waiting.get()) is not None:
            call, future = item
            self._done.append(None if future.cancelled() else _made(call, future))
            # Calls that are done before the loop looks cost it one wake-up.
            if not self._woken:
                self._woken = True
                try:
                    self._loop.call_soon_threadsafe(self._deliver)
                except RuntimeError:  # the loop has closed: nobody waits any more
                    return

    # On the loop again
    def _deliver(self) -> None:
        self._woken = False  # before the look: what is done later wakes the loop again
        while self._done:
            made = self._done.popleft()
            self._pending -= 1
            if made is not None:
                self._settle(made)
        self.in_place = self._in_place and not self._pending


def _made(call: Callable[[], Any], future: asyncio.Future[Any]) -> Made:
    began = time.perf_counter()
    error: Exception | None = None
    result = None
    try:
        result = call()
    except StopIteration as caught:  # no future can hold it
        error = user_error(caught)
    except Exception as caught:
        error = caught
    except BaseException as caught:  # it would end the thread, or the task that waits
        if is_ctrl_c(caught):
            raise
        error = user_error(caught)
    return future, result, error, time.perf_counter() - began


def is_ctrl_c(error: BaseException) -> bool:
    """Whether a signal may have raised it, which happens in the main thread alone.

    Everything else that a caller's code raises is its own failure. A `SystemExit`, a
    `KeyboardInterrupt` or another class under `BaseException` would end a thread or a task, and
    whoever waits for it would never know.
    """
    return (
        isinstance(error, KeyboardInterrupt)
        and threading.current_thread() is threading.main_thread()
    )


def ends_task(error: BaseException) -> bool:
    """Whether the exception ends the task that awaits a caller's code, rather than coming from that
    code.
    """
    if isinstance(error, asyncio.CancelledError | GeneratorExit):
        try:
            task = asyncio.current_task()
        except RuntimeError:  # no loop runs: the coroutine is thrown away
            return True
        return task is None or bool(task.cancelling())
    return is_ctrl_c(error)


def user_error(error: BaseException, what: str = "") -> PenstockError:
    """The error itself if it is one of ours, else a `UserCodeError` that says `what` failed."""
    if isinstance(error, PenstockError):
        return error
    made = UserCodeError(f"{what}: {class_and_text(error)}" if what else class_and_text(error))
    made.__cause__ = error
    return made
