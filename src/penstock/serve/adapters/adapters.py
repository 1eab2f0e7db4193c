"""Loads adapters into one engine on first use, once each, up to a limit (LRU).

The engine knows an adapter as name@digest. A changed adapter has a new name, so the engine never
uses cached data of the old content (such as its prefix cache).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from penstock.engines.base import LLMEngine
from penstock.errors import UnsupportedError
from penstock.serve.adapters.store import AdapterVersion


class _Loaded:
    def __init__(self, version: AdapterVersion) -> None:
        self.version = version
        self.users = 0


class Adapters:
    """The adapters that `engine` holds, at most `limit`, least recently used first."""

    def __init__(self, engine: LLMEngine, limit: int) -> None:
        self._engine = engine
        self._limit = limit
        self._loaded: OrderedDict[str, _Loaded] = OrderedDict()
        self._loading = asyncio.Lock()
        self._short_of_room = False
        self._released = asyncio.Event()
        self.loads = 0
        """Number of loads into the engine so far."""

    @property
    def names(self) -> list[str]:
        """The engine's names of its adapters, least recently used first."""
        return list(self._loaded)

    @asynccontextmanager
    async def use(self, version: AdapterVersion) -> AsyncIterator[str]:
        """Load the adapter if it is missing, and keep it while the context lasts. Yields the
        engine's name for it.
        """
        name = f"{version.name}@{version.digest}"
        held = self._loaded.get(name)
        if (
            held is None or self._short_of_room
        ):  # else a busy adapter would starve one that waits for room
            async with self._loading:
                held = self._loaded.get(name) or await self._load(name, version)
        held.users += 1
        self._loaded.move_to_end(name)
        try:
            yield name
        finally:
            held.users -= 1
            self._released.set()

    async def reapply(self) -> None:
        """Reload adapters that a restarted engine has lost."""
        for name, held in self._loaded.items():
            if name not in self._engine.adapters:
                await self._engine.resolve_lora(name, held.version.path)
                self.loads += 1

    def forget_missing(self) -> None:
        """Forget adapters whose files were evicted from the cache: an engine cannot start with
        them. The next request for such an adapter fetches it again.
        """
        for name, held in list(self._loaded.items()):
            if not os.path.isdir(held.version.path):
                del self._loaded[name]
                self._engine.adapters.pop(name, None)

    def forget(self) -> None:
        """Forget all adapters after the engine was unloaded."""
        for name in self._loaded:
            self._engine.adapters.pop(name, None)
        self._loaded.clear()

    async def _load(self, name: str, version: AdapterVersion) -> _Loaded:
        for other, held in list(self._loaded.items()):
            if held.version.name == version.name and not held.users:
                await self._remove(other)  # its content is outdated
        while len(self._loaded) >= self._limit:
            unused = next((other for other, held in self._loaded.items() if not held.users), None)
            if unused is not None:
                await self._remove(unused)
                continue
            self._released.clear()
            self._short_of_room = True
            try:
                await self._released.wait()
            finally:
                self._short_of_room = False
        await self._engine.resolve_lora(name, version.path)
        self.loads += 1
        held = self._loaded[name] = _Loaded(version)
        return held

    async def _remove(self, name: str) -> None:
        del self._loaded[name]
        with contextlib.suppress(UnsupportedError):
            await self._engine.remove_lora(name)
