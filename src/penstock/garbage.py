"""Tunes Python's garbage collector for jobs and servers, which leave few cycles."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

NEW_OBJECTS = 50_000
"""Allocations between two collections while a job runs. A job holds thousands of rows. At Python's
default of 700, a collection would run every ten rows or so, and now and then visit all rows,
without finding garbage: a row's objects are freed when the row is written.
"""

SERVING_OBJECTS = 10_000
"""The same for a server. With some hundred requests under way, 700 allocations are a few requests,
and a collection finds nothing: a request's objects are freed when it ends.
"""

_lock = threading.Lock()
_jobs = 0
_before: tuple[int, int, int] | None = None


@contextmanager
def collected_seldom() -> Iterator[None]:
    """Collect seldom within the context. The end of the last such context restores the thresholds.

    A disabled collector, or one with a higher threshold, stays unchanged.
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
    """Collect seldom for the rest of the process, as a server does. Objects that exist now are
    frozen: they live until the end, so no collection visits them again.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(SERVING_OBJECTS, 10, 10)
