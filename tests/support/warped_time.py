"""An event loop that does not wait: its time jumps to the next timer whenever nothing else
happens.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")
GRACE_S = 0.005
"""Real time in which sockets and threads may still have news."""


class _Selector(selectors.DefaultSelector):
    jumped = 0.0

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None or timeout <= GRACE_S:
            return super().select(timeout)
        events = super().select(GRACE_S)
        if not events:
            self.jumped += timeout - GRACE_S
        return events


class WarpedLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.selector = _Selector()
        super().__init__(self.selector)

    def time(self) -> float:
        return super().time() + self.selector.jumped

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:  # noqa: ASYNC109
        """Wait for threads however long they take: their time is not warped."""
        await super().shutdown_default_executor()


def run_warped(main: Coroutine[Any, Any, T]) -> T:
    """What `main` returns, run where a minute takes no time."""
    with asyncio.Runner(loop_factory=WarpedLoop) as runner:
        return runner.run(main)
