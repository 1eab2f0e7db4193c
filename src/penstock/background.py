"""One event loop in a background thread, for callers without a loop. Its tasks and engines live
on between calls.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import os
import sys
import threading
from collections.abc import Coroutine, Iterator
from typing import Any, TypeVar

from penstock.errors import ConfigError, JobError

T = TypeVar("T")

_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None
_thread: threading.Thread | None = None
_ending: set[asyncio.Task[Any]] = set()
"""Keeps the tasks of `finish` from the garbage collector."""


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run `work` on the background loop, and return its result. Ctrl-C cancels `work`, and is
    raised once that has ended.

    Raises `ConfigError` on that loop itself, which cannot wait for its own thread.
    """
    try:
        check_may_wait()
    except ConfigError:
        work.close()
        raise
    with while_program_lives():
        return _run(work)


def _run(work: Coroutine[Any, Any, T]) -> T:
    loop = _running_loop()
    future: concurrent.futures.Future[T] = concurrent.futures.Future()
    tasks: list[asyncio.Task[T]] = []

    def begin() -> None:
        tasks.append(task := loop.create_task(work))
        task.add_done_callback(lambda _: _settle(future, task))

    def end() -> None:
        if tasks:
            # Cancel the task, not the future: the future of `run_coroutine_threadsafe` would be
            # done before the work is.
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


@contextlib.contextmanager
def while_program_lives() -> Iterator[None]:
    """Inside, the `RuntimeError` by which Python starts no threads any more, once the main one has
    ended, becomes a `JobError` that says so.
    """
    try:
        yield
    except RuntimeError as error:
        if threading.main_thread().is_alive():
            raise
        raise JobError(
            "the program's main thread has ended, and Python starts no others then; let it wait for"
            " the thread that runs this: join() it"
        ) from error


def check_may_wait() -> None:
    """Raise `ConfigError` on the background loop: it can wait neither for itself nor for a thread
    that waits for it.
    """
    if threading.current_thread() is _thread:
        raise ConfigError(
            "a function that a processor calls cannot wait for another one; make it an async stage"
        )


def finish(work: Coroutine[Any, Any, Any]) -> None:
    """Run the clean-up `work`, and wait for its end where waiting is possible.

    The garbage collector may call this, in any thread and during the interpreter's exit.
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
    """After a fork: the thread that runs the loop does not exist in the child."""
    global _lock, _loop, _thread
    _lock, _loop, _thread = threading.Lock(), None, None
    _ending.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def _running_loop() -> asyncio.AbstractEventLoop:
    global _loop, _thread
    if _loop is not None:  # the garbage collector may call this: never wait for a lock
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
