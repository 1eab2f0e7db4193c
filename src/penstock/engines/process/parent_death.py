"""Ends an engine's process with its parent, whatever that process is doing.

A worker that reads its pipe sees it close when the parent is gone, but not while it is inside a
long native call. So the kernel is asked to kill it then; and a thread watches the pipe, for systems
whose kernel cannot be asked.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time

_PR_SET_PDEATHSIG = 1
_GRACE_SECONDS = 4.0
"""How long the worker has for an orderly end after its pipe has closed."""


def end_with_parent(fd: int, parent: int) -> None:
    """Call this first in a process that `EngineProcess` started: `fd` is its pipe, `parent` the
    parent's id.
    """
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it went before the kernel was asked
        os._exit(1)
    threading.Thread(target=_watch, args=(fd,), name="penstock-parent-watch", daemon=True).start()


def _watch(fd: int) -> None:
    closed = getattr(select, "POLLRDHUP", select.POLLHUP)
    poll = select.poll()
    poll.register(fd, closed)
    poll.poll()
    time.sleep(_GRACE_SECONDS)
    os._exit(1)
