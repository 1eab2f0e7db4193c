"""The LoRA adapters that a running vLLM holds."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from itertools import count
from typing import Any


class _Adapter:
    def __init__(self, name: str, number: int, path: str) -> None:
        self.name = name
        self.number = number
        self.path = path
        self.users = 0
        self.request: Any = None  # vLLM's LoRARequest while it is loaded


class Adapters:
    """Loads adapters into vLLM before requests use them, at most `limit`; evicts the least recently
    used.

    vLLM would load them itself, but within a step, where an unreadable file ends the engine; and
    its CPU kernels are wrong for rows without an adapter once every slot is taken. `load` loads an
    adapter (name, number, path) and returns vLLM's request for it; `unload` takes the number. A
    name that is added again gets another number, so that the cache keeps old and new content apart.
    """

    def __init__(
        self,
        limit: int,
        load: Callable[[str, int, str], Awaitable[Any]],
        unload: Callable[[int], Awaitable[Any]],
    ) -> None:
        self._limit = limit
        self._load = load
        self._unload = unload
        self._numbers = count(1)
        self._known: dict[str, _Adapter] = {}
        self._loaded: OrderedDict[int, _Adapter] = OrderedDict()
        self._loading = asyncio.Lock()
        self._released = asyncio.Event()

    async def add(self, name: str, path: str) -> None:
        """Load an adapter and register it. Raises what `load` raises, without registering it."""
        adapter = _Adapter(name, next(self._numbers), path)
        await self._ensure(adapter)
        replaced, self._known[name] = self._known.get(name), adapter
        if replaced is not None:
            await self._drop(replaced)

    def know(self, name: str, path: str) -> None:
        """Register an adapter. It is loaded on first use."""
        self._known[name] = _Adapter(name, next(self._numbers), path)

    async def remove(self, name: str) -> None:
        """Forget an adapter. Requests that use it run to their end."""
        await self._drop(self._known.pop(name))

    @asynccontextmanager
    async def use(self, name: str) -> AsyncIterator[Any]:
        """vLLM's request for a registered adapter, which stays loaded while the context lasts."""
        adapter = self._known[name]
        while adapter.request is None:  # it may be evicted before this task goes on
            await self._ensure(adapter)
        adapter.users += 1  # not before: a waiting request must not prevent its eviction
        try:
            self._loaded.move_to_end(adapter.number)
            yield adapter.request
        finally:
            adapter.users -= 1
            self._released.set()
            if not adapter.users and self._known.get(adapter.name) is not adapter:
                await self._drop(adapter)

    async def _ensure(self, adapter: _Adapter) -> None:
        async with self._loading:
            if adapter.request is not None:
                return
            while len(self._loaded) >= self._limit:
                idle = next((other for other in self._loaded.values() if not other.users), None)
                if idle is not None:
                    await self._free(idle)
                else:
                    self._released.clear()
                    await self._released.wait()
            try:
                adapter.request = await self._load(adapter.name, adapter.number, adapter.path)
            except asyncio.CancelledError:
                with suppress(Exception):  # the engine may die meanwhile
                    await self._unload(adapter.number)  # vLLM loads it all the same
                raise
            self._loaded[adapter.number] = adapter

    async def _drop(self, adapter: _Adapter) -> None:
        if adapter.users == 0 and adapter.request is not None:
            await self._free(adapter)

    async def _free(self, adapter: _Adapter) -> None:
        del self._loaded[adapter.number]
        adapter.request = None
        await self._unload(adapter.number)
