"""Where a processor's stages get their engine: one of their own, one of a name, or an object."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import uuid
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

from penstock.engines.base import LLMEngine
from penstock.engines.registry import engines
from penstock.engines.supervision.keeper import EngineKeeper, engine_for, keeper_of
from penstock.errors import ConfigError

_replicas: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, set[int]]] = WeakKeyDictionary()
"""The engines that are taken, by the name of their source: those of each event loop are its own."""


@dataclass(frozen=True)
class EngineSource:
    """How to come by an engine. All stages of a processor have the same source, and so the same engine.

    `shared` is an engine object or a name; None: an engine of the processor's own, called `name`, which ends with its
    last user. `kind`, `model` and `engine_kwargs` make it. Can be pickled, unless it holds an object.
    """

    kind: str
    model: str | None
    engine_kwargs: Mapping[str, Any] = field(default_factory=dict)
    shared: str | LLMEngine | None = None
    name: str = field(default_factory=lambda: f"processor-{uuid.uuid4().hex[:8]}")

    def __post_init__(self) -> None:
        if self.shared is not None and not isinstance(self.shared, str | LLMEngine):
            raise ConfigError(
                f"must be an engine's name or an engine object, not a {type(self.shared).__name__}", field="engine"
            )

    @contextlib.asynccontextmanager
    async def running(self, replica: int = 0) -> AsyncGenerator[EngineKeeper, None]:
        """The engine's keeper, the engine started. Engines of the processor's own are told apart by `replica`."""
        if isinstance(self.shared, LLMEngine):
            async with keeper_of(self.shared).running():
                yield keeper_of(self.shared)
            return
        names = engines()
        if self.shared is not None:
            engine, made = names.get_or_make(self.shared, self._make if self.model else None, self._recipe)
            keeper = keeper_of(engine)
            keeper.stays = keeper.stays or made
            async with keeper.running():
                if made:
                    await names.end_with_loop()
                yield keeper
            return
        name = f"{self.name}/{replica}"
        engine, _ = names.get_or_make(name, self._make, self._recipe)
        keeper = keeper_of(engine)
        try:
            async with keeper.running():
                yield keeper
        finally:
            if not keeper.in_use:
                names.remove(name)

    def take_replica(self) -> int:
        """The number of an engine that no other worker of this processor has."""
        taken = _taken().setdefault(self.name, set())
        replica = next(number for number in itertools.count() if number not in taken)
        taken.add(replica)
        return replica

    def give_back(self, replica: int) -> None:
        """The worker that took this number has ended."""
        taken = _taken()[self.name]
        taken.discard(replica)
        if not taken:
            del _taken()[self.name]

    @property
    def model_source(self) -> str | None:
        """What the engine loads, as far as it is known beforehand."""
        return self.shared.model_source if isinstance(self.shared, LLMEngine) else self.model

    @property
    def _recipe(self) -> dict[str, Any]:
        return {"engine": self.kind, "model": self.model, "engine_kwargs": dict(self.engine_kwargs)}

    def _make(self) -> LLMEngine:
        return engine_for(self.model, self.kind, self.engine_kwargs)


def _taken() -> dict[str, set[int]]:
    return _replicas.setdefault(asyncio.get_running_loop(), {})
