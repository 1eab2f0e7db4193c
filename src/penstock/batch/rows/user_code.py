"""What comes out of code that is not ours: functions, stages and iterators, which may end with
anything.
"""

from __future__ import annotations

import asyncio
import threading

from penstock.errors import PenstockError, UserCodeError, told


def is_ctrl_c(error: BaseException) -> bool:
    """Whether a signal may have raised it: that happens in the main thread alone.

    Everything else that such code raises is its own failure. In a thread or a task a `SystemExit`,
    a `KeyboardInterrupt` or a class of its own under `BaseException` would end that, with nobody to
    tell who waits.
    """
    return (
        isinstance(error, KeyboardInterrupt)
        and threading.current_thread() is threading.main_thread()
    )


def ends_task(error: BaseException) -> bool:
    """Whether it ends the task that awaits such code, and does not come out of the code itself."""
    if isinstance(error, asyncio.CancelledError | GeneratorExit):
        try:
            task = asyncio.current_task()
        except RuntimeError:  # no loop runs: the coroutine is thrown away
            return True
        return task is None or bool(task.cancelling())
    return is_ctrl_c(error)


def user_error(error: BaseException, what: str = "") -> PenstockError:
    """The error as one of ours: itself if it is, else one that tells of it, after `what` it
    means.
    """
    if isinstance(error, PenstockError):
        return error
    made = UserCodeError(f"{what}: {told(error)}" if what else told(error))
    made.__cause__ = error
    return made
