"""Where an engine's loop leaves what it made for one request, until the request's caller takes
it.
"""

from __future__ import annotations

import asyncio

from penstock.types import Delta


class Mailbox:
    """Deltas that have come for one request and were not taken yet. One caller takes them."""

    __slots__ = ("_deltas", "_error", "_waiter")

    def __init__(self) -> None:
        self._deltas: list[Delta] = []
        self._error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None

    @property
    def failed(self) -> bool:
        """Whether the request has failed: no delta comes any more."""
        return self._error is not None

    def put(self, delta: Delta) -> None:
        self._deltas.append(delta)
        self._wake()

    def fail(self, error: Exception) -> None:
        """End the request with an error, which is raised after the deltas that came before it."""
        self._error = error
        self._wake()

    async def take(self) -> list[Delta]:
        """All that is there, at least one delta. Raises what `fail` was given."""
        while not self._deltas:
            if self._error is not None:
                raise self._error
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        taken, self._deltas = self._deltas, []
        return taken

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
