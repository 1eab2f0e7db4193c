"""Keeps Python from searching for garbage where there is none, over and over: a job's rows, a
server's requests.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

NEW_OBJECTS = 50_000
"""New objects between two searches while a job runs. A job holds thousands of rows, and at Python's
700 each search after some ten rows would go through those that came since the last, and now and
then through all; none of them is garbage: what a row leaves is freed when it is written.
"""

SERVING_OBJECTS = 10_000
"""The same of a server. With some hundred requests under way, 700 are a few requests, and a search
finds nothing: what a request leaves is freed when it ends.
"""

_lock = threading.Lock()
_jobs = 0
_before: tuple[int, int, int] | None = None


@contextmanager
def collected_seldom() -> Iterator[None]:
    """Search seldom within the context, and as before when the last of several has ended.

    A collector that is off, or set to search more seldom still, is left as it is.
    """
    global _jobs, _before
    with _lock:
        if not _jobs and 0 < gc.get_threshold()[0] < NEW_OBJECTS:
            _before = gc.get_threshold()
            gc.set_threshold(NEW_OBJECTS, *_before[1:])
        _jobs += 1
    try:
        yield
    finally:
        with _lock:
            _jobs -= 1
            if not _jobs and _before is not None:
                gc.set_threshold(*_before)
                _before = None


def collect_seldom_from_now() -> None:
    """The same for a process that does nothing but serve: what it holds before the first request is
    never searched again, as it stays until the end.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(SERVING_OBJECTS, 10, 10)
