"""What an engine has cached, in the words of those who choose between engines.

A router names the blocks of a prompt by its bytes, which costs it next to nothing; an engine knows
blocks of tokens, and tells when it stores and drops them. Whoever has both, because a request
brings its router's names to the engine that tokenizes it, can say which of the router's blocks the
engine holds. Nobody tokenizes a prompt only to route it.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextvars import ContextVar

from msgspec import Struct

PROMPT_BLOCKS: ContextVar[tuple[int, ...]] = ContextVar("prompt_blocks", default=())
"""The names that the router gave to the blocks of the request under way."""

MOST_PENDING = 1024
"""Changes that a slow watcher may lag behind before it gets everything anew."""


class Change(Struct, frozen=True, array_like=True):
    """What has become of some names: they are cached now (`stored`), or no more; `anew` means that
    nothing else is.
    """

    stored: list[int] = []
    removed: list[int] = []
    anew: bool = False


class CachedBlocks:
    """The names that one engine holds, at most `capacity`. Bound to one event loop."""

    def __init__(self, capacity: int = 200_000) -> None:
        self.capacity = capacity
        self._held: set[int] = set()  # blocks of tokens
        # By name; the one that was asked for last is last.
        self._block_of: OrderedDict[int, int] = OrderedDict()
        self._names_of: dict[int, dict[int, None]] = {}
        self._watches: set[_Watch] = set()

    def asked(self, names: Sequence[int], blocks: Sequence[int]) -> None:
        """A prompt whose router names it so has these blocks of tokens. Of n names the k-th ends
        with about the k/n-th part of the prompt, so it is taken to be held when the block there is.
        """
        if not blocks:
            return
        stored = []
        for number, name in enumerate(names, 1):
            known = self._block_of.get(name)
            if known is not None and known in self._held:
                self._block_of.move_to_end(name)
                continue
            block = blocks[-(-number * len(blocks) // len(names)) - 1]
            self._link(name, block)
            if block in self._held:
                stored.append(name)
        removed = []
        while len(self._block_of) > self.capacity:
            name, block = self._block_of.popitem(last=False)
            self._unlink(name, block)
            if block in self._held:
                removed.append(name)
        self._tell(stored, removed)

    def stored(self, blocks: Iterable[int]) -> None:
        """The engine holds these blocks of tokens."""
        new = [block for block in blocks if block not in self._held]
        self._held.update(new)
        self._tell([name for block in new for name in self._names_of.get(block, ())], [])

    def removed(self, blocks: Iterable[int]) -> None:
        """The engine has dropped these blocks of tokens."""
        gone = [block for block in blocks if block in self._held]
        self._held.difference_update(gone)
        self._tell([], [name for block in gone for name in self._names_of.get(block, ())])

    def clear(self) -> None:
        self._held.clear()
        for watch in self._watches:
            watch.start_anew()

    def held(self) -> list[int]:
        """All names that are cached."""
        return [name for name, block in self._block_of.items() if block in self._held]

    async def changes(self) -> AsyncGenerator[list[Change], None]:
        """What is cached now, then what changes, those changes that have come meanwhile in one
        list. Has no end.
        """
        watch = _Watch()
        self._watches.add(watch)
        try:
            while True:
                yield await watch.take(self.held)
        finally:
            self._watches.discard(watch)

    def _link(self, name: int, block: int) -> None:
        before = self._block_of.get(name)
        if before is not None:
            self._unlink(name, before)
        self._block_of[name] = block
        self._block_of.move_to_end(name)
        self._names_of.setdefault(block, {})[name] = None

    def _unlink(self, name: int, block: int) -> None:
        names = self._names_of[block]
        del names[name]
        if not names:
            del self._names_of[block]

    def _tell(self, stored: list[int], removed: list[int]) -> None:
        if stored or removed:
            for watch in self._watches:
                watch.put(Change(stored, removed))


class _Watch:
    """The changes that one watcher has not got yet."""

    def __init__(self) -> None:
        self._pending: list[Change] = []
        self._anew = True
        self._news = asyncio.Event()
        self._news.set()

    def put(self, change: Change) -> None:
        if len(self._pending) >= MOST_PENDING:
            self.start_anew()
        elif not self._anew:
            self._pending.append(change)
            self._news.set()

    def start_anew(self) -> None:
        self._pending.clear()
        self._anew = True
        self._news.set()

    async def take(self, everything: Callable[[], list[int]]) -> list[Change]:
        await self._news.wait()
        self._news.clear()
        if self._anew:
            self._anew = False
            return [Change(everything(), anew=True)]
        pending, self._pending = self._pending, []
        return pending
