"""One event loop in a thread of its own, for callers that have none: what they start there lives from call to call."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None


def run(work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, done on the background loop. Ctrl-C cancels it, and returns when it has ended."""
    future = asyncio.run_coroutine_threadsafe(work, _running_loop())
    try:
        return future.result()
    except BaseException:
        if not future.done():  # an interrupt in this thread, not the work's own error
            future.cancel()
            with contextlib.suppress(concurrent.futures.CancelledError, Exception):
                future.result()
        raise


def _running_loop() -> asyncio.AbstractEventLoop:
    global _loop
    with _lock:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            # A daemon: it ends with the program, and engines end when their pipes close.
            threading.Thread(target=_loop.run_forever, name="penstock-background", daemon=True).start()
        return _loop
