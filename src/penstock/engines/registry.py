"""Engines and handles of this process, by name: what batch work and servers share.

Engines belong to an event loop, so each loop has its own names. Work started without one (a processor's rows in a `for`
loop) runs on the one background loop, and so shares its engines from call to call.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import Any
from weakref import WeakKeyDictionary

from penstock import background
from penstock.engines.base import LLMEngine
from penstock.errors import ConfigError, ModelNotFoundError, nearest

DEFAULT_APP = "default"


class Engines:
    """The names of one event loop.

    What `put` names belongs to the caller, who starts and stops it. What `get_or_make` makes belongs to this registry
    and lives until `stop`, at the latest to the end of the event loop, where its asynchronous generators are told of
    that, as by `asyncio.run`.
    """

    def __init__(self) -> None:
        self._named: dict[tuple[str, str], Any] = {}
        self._made: dict[str, Any] = {}
        self._end: AsyncGenerator[None, None] | None = None

    def put(self, name: str, engine: Any, app_name: str = DEFAULT_APP) -> None:
        """Name an engine, or a handle: anything that has an engine's `chat`, `completions` or `embeddings`."""
        key = (app_name, name)
        if self._named.get(key, engine) is not engine:
            raise ConfigError(f"the name is taken by another engine of '{app_name}'", field="engine", value=name)
        self._named[key] = engine

    def remove(self, name: str, app_name: str = DEFAULT_APP) -> None:
        """Forget a name. The engine is left as it is, and is its users' own from now on."""
        self._named.pop((app_name, name), None)
        if app_name == DEFAULT_APP:
            self._made.pop(name, None)

    def get(self, name: str, app_name: str = DEFAULT_APP) -> Any:
        """What has that name. Raises `ModelNotFoundError`."""
        try:
            return self._named[(app_name, name)]
        except KeyError:
            known = [other for app, other in self._named if app == app_name]
            hint = nearest(name, known) or "No name is known in this event loop"
            raise ModelNotFoundError(f"there is no engine '{name}' in app '{app_name}'. {hint}") from None

    def get_or_make(self, name: str, make: Callable[[], LLMEngine] | None, recipe: Any) -> tuple[Any, bool]:
        """The engine of that name, made now if there is none, and whether it belongs to the registry.

        `recipe` tells what `make` makes; `make` None only finds. Raises `ConfigError` if the name stands for an engine
        of another recipe.
        """
        key = (DEFAULT_APP, name)
        engine = self._named.get(key)
        if engine is None:
            if make is None:
                return self.get(name), False
            engine = self._named[key] = make()
            self._made[name] = recipe
        elif make is not None and name in self._made and self._made[name] != recipe:
            raise ConfigError(
                f"'{name}' is an engine with another model or other options: {self._made[name]}",
                field="engine",
                value=name,
            )
        return engine, name in self._made

    async def end_with_loop(self) -> None:
        """Have what is made here stopped when the event loop ends."""
        if self._end is None:
            self._end = self._at_end()
            await anext(self._end)

    async def _at_end(self) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            await self.stop()

    def __iter__(self) -> Iterator[str]:
        return iter(sorted({name for _, name in self._named}))

    async def stop(self, name: str | None = None) -> None:
        """Stop the engines that were made here, or the one of that name, and forget them."""
        for made in [name] if name is not None else list(self._made):
            if self._made.pop(made, None) is not None:
                await self._named.pop((DEFAULT_APP, made)).stop()


_of_loops: WeakKeyDictionary[asyncio.AbstractEventLoop, Engines] = WeakKeyDictionary()


def engines() -> Engines:
    """The names of the running event loop."""
    return _of_loops.setdefault(asyncio.get_running_loop(), Engines())


def stop_engines(name: str | None = None) -> None:
    """Stop the named engines that work without an event loop of its own has made, or the one of that name.

    Inside an event loop: `await engines().stop()`.
    """

    async def stop() -> None:
        await engines().stop(name)

    background.run(stop())
