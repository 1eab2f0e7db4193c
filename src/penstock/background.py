"""One event loop in a thread of its own, for callers that have none: what they start there lives
from call to call.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import os
import sys
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

from penstock.errors import ConfigError

T = TypeVar("T")

_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None
_thread: threading.Thread | None = None
_ending: set[asyncio.Task[Any]] = set()


def run(work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, done on the background loop. Ctrl-C cancels it, and returns when it has
    ended.

    Raises `ConfigError` where it is called on that loop, which cannot wait for itself.
    """
    try:
        check_may_wait()
    except ConfigError:
        work.close()
        raise
    loop = _running_loop()
    future: concurrent.futures.Future[T] = concurrent.futures.Future()
    tasks: list[asyncio.Task[T]] = []

    def begin() -> None:
        tasks.append(task := loop.create_task(work))
        task.add_done_callback(lambda _: _settle(future, task))

    def end() -> None:
        if tasks:
            # Not the future, as that of `run_coroutine_threadsafe`: it would be done before the
            # work is.
            tasks[0].cancel()
        else:
            work.close()
            future.set_exception(concurrent.futures.CancelledError())

    try:
        loop.call_soon_threadsafe(begin)
        return future.result()
    except BaseException:
        if not future.done():  # an interrupt in this thread, not the work's own error
            loop.call_soon_threadsafe(end)
            with contextlib.suppress(concurrent.futures.CancelledError, Exception):
                future.result()
        raise


def check_may_wait() -> None:
    """Raises `ConfigError` on the background loop, which cannot wait for itself, nor for a thread
    that waits for it.
    """
    if threading.current_thread() is _thread:
        raise ConfigError(
            "a function that a processor calls cannot wait for another one; make it an async stage"
        )


def finish(work: Coroutine[Any, Any, Any]) -> None:
    """Have `work`, which ends something, done; wait for it where that is possible.

    It may be called by the garbage collector, in any thread and while the interpreter ends.
    """
    if sys.is_finalizing():
        work.close()
    elif _loop is not None and threading.current_thread() is _thread:
        _ending.add(task := _loop.create_task(work))
        task.add_done_callback(_ending.discard)
    else:
        run(work)


def _settle(future: concurrent.futures.Future[T], task: asyncio.Task[T]) -> None:
    if task.cancelled():
        future.set_exception(concurrent.futures.CancelledError())
    elif (error := task.exception()) is not None:
        future.set_exception(error)
    else:
        future.set_result(task.result())


def _forget() -> None:
    """In a forked child: the thread that runs the loop stayed behind."""
    global _lock, _loop, _thread
    _lock, _loop, _thread = threading.Lock(), None, None
    _ending.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def _running_loop() -> asyncio.AbstractEventLoop:
    global _loop, _thread
    if _loop is not None:  # the garbage collector may ask, anywhere: it must not wait for a lock
        return _loop
    with _lock:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            # A daemon: it ends with the program, and engines end when their pipes close.
            _thread = threading.Thread(
                target=_loop.run_forever, name="penstock-background", daemon=True
            )
            _thread.start()
        return _loop
