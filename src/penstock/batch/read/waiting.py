"""Waits for data that may never come, without keeping the process from its end."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

from penstock.batch.read.base import unreadable

T = TypeVar("T")


async def in_daemon_thread(call: Callable[[], T]) -> T:
    """What `call` returns or raises, from a thread of its own that nobody waits for once this is
    cancelled.

    `asyncio.to_thread` will not do for a pipe: the end of the event loop waits for its threads.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(result: list[T], error: Exception | None) -> None:
        if not done.done():
            if error is not None:
                done.set_exception(error)
            else:
                done.set_result(result[0])

    def work() -> None:
        result: list[T] = []
        failure: Exception | None = None
        try:
            result.append(call())
        except Exception as error:
            # No future can hold that one.
            failure = unreadable(error) if isinstance(error, StopIteration) else error
        except (
            BaseException
        ) as error:  # it would end the thread, and whoever waits would wait for ever
            failure = unreadable(error)
        with contextlib.suppress(RuntimeError):  # the loop has closed: nobody waits any more
            loop.call_soon_threadsafe(settle, result, failure)

    threading.Thread(target=work, name="penstock-opener", daemon=True).start()
    return await done
