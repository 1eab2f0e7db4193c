"""Looks after a job's engine: starts it, starts it again when it dies, and makes adapters ready once each."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator, Mapping
from typing import Any
from weakref import WeakKeyDictionary

from penstock.engines.base import LLMEngine, engine_class, with_deterministic
from penstock.engines.supervision.probe import probe
from penstock.engines.supervision.quarantine import Quarantine
from penstock.errors import ConfigError, EngineDeadError, EngineError, JobError, ModelNotFoundError

RESTARTS_WITHOUT_PROGRESS = 3
"""Deaths in a row without an answer, of which the last was at a request of our own, that end the job."""


def engine_for(
    model: str | None,
    engine: str | LLMEngine | None,
    engine_kwargs: Mapping[str, Any] | None,
    *,
    deterministic: bool = False,
) -> LLMEngine:
    """The engine a job asks for, not started yet if it is made here.

    `engine` None means "simulated" for the model of that name, else "openvino"; `model` None means "demo", and "auto"
    (the one that the server has) for "remote". `deterministic`: the same request gets the same answer.
    Raises `ConfigError`.
    """
    if isinstance(engine, LLMEngine):
        for name, value in (
            ("model", model),
            ("engine_kwargs", engine_kwargs),
            ("deterministic", deterministic or None),
        ):
            if value is not None:
                raise ConfigError("has no meaning beside an engine object, which has its own", field=name, value=value)
        return engine
    if engine is not None and not isinstance(engine, str):
        raise ConfigError(f"must be a name or an engine object, not a {type(engine).__name__}", field="engine")
    if engine is None:
        engine = "simulated" if model == "simulated" else "openvino"
    if model is None:
        model = {"simulated": "simulated", "remote": "auto"}.get(engine, "demo")
    cls = engine_class(engine)
    options = with_deterministic(cls, engine_kwargs or {}) if deterministic else engine_kwargs
    return cls(model, engine_kwargs=options)


class EngineKeeper:
    """Holds one engine for those that use it. What is started here ends with the last user; one that ran before stays.

    `keeper_of` gives the one keeper of an engine. `stays`: it is not stopped with its last user.
    """

    def __init__(self, engine: LLMEngine, *, restarts: int = RESTARTS_WITHOUT_PROGRESS) -> None:
        self.engine = engine
        self.generation = 0
        self.stays = False
        self.quarantine = Quarantine()
        self._restarts = restarts
        self._fruitless = 0
        self._users = 0
        self._started = False
        self._changing = asyncio.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._adapters: dict[str, asyncio.Future[None]] = {}

    @property
    def in_use(self) -> bool:
        """Whether somebody uses the engine now."""
        return self._users > 0

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncGenerator[LLMEngine, None]:
        """The engine, started unless it runs, for as long as the context lasts. Raises `EngineStartError`, and
        `ConfigError` for an engine that runs in another event loop.
        """
        self._check_loop()
        self._users += 1
        try:
            async with self._changing:
                try:
                    await self.engine.check_health()
                except EngineDeadError:
                    self._started = True
                    await self.engine.start()
            yield self.engine
        finally:
            self._users -= 1
            if not self._users:
                await self._end()

    def progressed(self) -> None:
        """The engine has answered: it is of use."""
        self._fruitless = 0

    async def revive(self, generation: int) -> None:
        """Start the engine again, unless that was done since `generation`.

        Raises `JobError` when it dies of whatever it is asked.
        """
        try:
            async with self._changing:
                if generation == self.generation:
                    await self._revive()
                    self.generation += 1
        finally:
            self.quarantine.reopen()

    async def _revive(self) -> None:
        self._fruitless += 1
        self._adapters.clear()
        while True:
            try:
                await self.engine.restart()
            except EngineError as error:
                raise JobError(f"the engine died and does not start again: {error}") from error
            if not self.quarantine.wants_probe and self._fruitless <= self._restarts:
                return
            try:
                await probe(self.engine)
            except EngineDeadError as error:
                self.quarantine.absolve()
                self._fruitless += 1
                if self._fruitless > self._restarts:
                    raise JobError(
                        f"the engine died {self._fruitless} times without finishing a row, at last of the least that"
                        f" can be asked: {error}"
                    ) from error
            else:
                self.quarantine.answered()
                self._fruitless = 0
                return

    def _check_loop(self) -> None:
        here = asyncio.get_running_loop()
        if not self._users:
            self._loop = here
        if self._loop is not here or self.engine.loop not in (None, here):
            raise ConfigError("the engine runs in another event loop, and can only be used there", field="engine")

    async def _end(self) -> None:
        """The last user has gone. One that comes while the engine is being stopped waits, and starts it again."""
        async with self._changing:
            if self._started and not self.stays and not self._users:
                self._started = False
                await self.engine.stop()
        if not self._users and _keepers.get(self.engine) is self:
            del _keepers[self.engine]

    async def adapter(self, name: str, where: str | None = None) -> None:
        """Make an adapter usable, once however many rows ask at a time. `where` is its directory, if that is known.

        Raises `ModelNotFoundError`.
        """
        ready = self._adapters.get(name)
        if ready is None:
            ready = self._adapters[name] = asyncio.ensure_future(self._load_adapter(name, where))
        await asyncio.shield(ready)

    async def _load_adapter(self, name: str, where: str | None) -> None:
        try:
            path = adapter_path(self.engine, name, where)
            if path is not None:
                await self.engine.resolve_lora(name, path)
        except EngineError:
            self._adapters.pop(name, None)  # the next row may have more luck
            raise


_keepers: WeakKeyDictionary[LLMEngine, EngineKeeper] = WeakKeyDictionary()


def keeper_of(engine: LLMEngine) -> EngineKeeper:
    """The keeper of an engine, one for all that use it at a time: it is started, revived and stopped once."""
    keeper = _keepers.get(engine)
    if keeper is None:
        keeper = _keepers[engine] = EngineKeeper(engine)
    return keeper


def adapter_path(engine: LLMEngine, name: str, where: str | None = None) -> str | None:
    """The directory of an adapter, or None if the engine knows it already. Raises `ModelNotFoundError`.

    `where` is looked at first.
    """
    if name in engine.adapters:
        return None
    if where is not None and os.path.isdir(where):
        return where
    if engine.model_source == "demo":
        from penstock import demo

        try:
            return str(demo.adapter_path(name))
        except ValueError as error:
            if not os.path.isdir(name):
                raise ModelNotFoundError(str(error), param="adapter") from None
    if os.path.isdir(name):
        return name
    raise ModelNotFoundError(f"no adapter '{name}': it is no directory, and the engine has none of that name")
