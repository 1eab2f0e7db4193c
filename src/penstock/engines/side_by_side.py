"""Work side by side in one event loop, and its end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Collection, Coroutine, Iterable
from typing import Any, TypeVar

T = TypeVar("T")


async def all_of(work: Iterable[Awaitable[T]]) -> list[T]:
    """The results of all, in order. If one fails, its error is raised when the others have
    ended.
    """
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        await end_all(tasks)
        raise


def begin(work: Coroutine[Any, Any, Any], among: set[asyncio.Task[Any]]) -> None:
    """Do the work in a task, which is in the set `among` until it has ended."""
    among.add(task := asyncio.create_task(work))
    task.add_done_callback(among.discard)


async def end_all(tasks: Collection[asyncio.Future[Any]]) -> None:
    """Cancel the tasks, and wait until they have ended."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
