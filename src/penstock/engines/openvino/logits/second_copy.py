"""The second copy of a model, which gives log probabilities: who needs it, and its memory as the
parent counts it. The worker loads it (`logits/`).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

from penstock.engines.base import Room
from penstock.errors import PenstockError
from penstock.types import Sampling

IDLE_SECONDS = 60.0
"""After so long without use the copy is given back."""


def needs_scores(sampling: Sampling) -> bool:
    """Whether a request is read beside its lane, as the lane's log probabilities are not enough.
    A biased one has them from the logits that it is sampled by.
    """
    if sampling.prompt_logprobs is not None:
        return True
    if is_biased(sampling):
        return False
    top = sampling.logprobs or 0
    return top > 1 or (top == 1 and sampling.temperature > 0)


def is_biased(sampling: Sampling) -> bool:
    """Whether a request's logits are changed token by token."""
    return bool(sampling.logit_bias or sampling.allowed_token_ids or sampling.bad_words)


class SecondCopy:
    """Counts the users of the copy. Room is made for it at the first use. When nobody used it for
    `IDLE_SECONDS`, or somebody else needs the memory, `give_back` is awaited and the room freed.
    """

    def __init__(self, give_back: Callable[[], Awaitable[None]]) -> None:
        self.room: Room | None = None
        self._give_back = give_back
        self._taking = asyncio.Lock()
        self._held: Room | None = None
        self._users = 0
        self._idle_since = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._giving: asyncio.Task[None] | None = None

    @property
    def idle_since(self) -> float | None:
        """The event loop's time of the last use; None while it is in use."""
        return None if self._users or self._held is None else self._idle_since

    @contextlib.asynccontextmanager
    async def used(self) -> AsyncIterator[None]:
        """Hold the copy. Raises what making room for it raises."""
        self._users += 1
        self._stop_timer()
        try:
            async with self._taking:
                if self._held is None and self.room is not None:
                    await self.room.make()
                    self._held = self.room
            yield
        finally:
            self._users -= 1
            if not self._users and self._held is not None:
                loop = asyncio.get_running_loop()
                self._idle_since = loop.time()
                self._held.idle()
                self._timer = loop.call_later(IDLE_SECONDS, self._begin_giving)

    async def unload(self) -> None:
        """Free the copy now, unless it is in use."""
        if self._users or self._held is None:
            return
        async with self._taking:
            with contextlib.suppress(PenstockError):  # the process has ended, and the copy with it
                await self._give_back()
            self.lost()

    def lost(self) -> None:
        """The process has ended: give its memory back to the budget."""
        self._stop_timer()
        held, self._held = self._held, None
        if held is not None:
            held.free()

    def _begin_giving(self) -> None:
        self._giving = asyncio.create_task(self.unload())

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
