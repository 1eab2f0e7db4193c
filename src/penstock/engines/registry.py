"""Engines and handles of this process, by name. Batch work and servers share them.

Each event loop has its own names, as an engine is bound to its loop. Work without a loop of its own
(a processor's rows in a `for` loop) runs on the background loop, and shares its engines.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import uuid
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

from penstock import background
from penstock.engines.base import LLMEngine, engine_class, with_deterministic
from penstock.engines.supervisor import Supervisor, supervisor_of
from penstock.errors import ConfigError, ModelNotFoundError, nearest

DEFAULT_APP = "default"


class Engines:
    """The named engines and handles of one event loop.

    An engine that `put` names belongs to the caller, who starts and stops it. An engine that
    `get_or_make` makes belongs to this registry. It lives until `stop`, or until the event loop
    ends if the loop closes its asynchronous generators then, as `asyncio.run` does.
    """

    def __init__(self) -> None:
        self._named: dict[tuple[str, str], Any] = {}
        self._made: dict[str, Any] = {}
        self._replicas: defaultdict[str, set[int]] = defaultdict(set)
        self._end: AsyncGenerator[None, None] | None = None

    def put(self, name: str, engine: Any, app_name: str = DEFAULT_APP) -> None:
        """Name an engine or a handle: anything with `chat`, `completions` or `embeddings`."""
        key = (app_name, name)
        if self._named.get(key, engine) is not engine:
            raise ConfigError(
                f"the name is taken by another engine of '{app_name}'", field="engine", value=name
            )
        self._named[key] = engine

    def remove(self, name: str, app_name: str = DEFAULT_APP) -> None:
        """Forget a name. The engine is left as it is; whoever uses it must stop it from now on."""
        self._named.pop((app_name, name), None)
        if app_name == DEFAULT_APP:
            self._made.pop(name, None)

    def get(self, name: str, app_name: str = DEFAULT_APP) -> Any:
        """The engine or handle of that name. Raises `ModelNotFoundError`."""
        try:
            return self._named[(app_name, name)]
        except KeyError:
            known = [other for app, other in self._named if app == app_name]
            hint = nearest(name, known) or "No name is known in this event loop"
            raise ModelNotFoundError(
                f"there is no engine '{name}' in app '{app_name}'. {hint}"
            ) from None

    def get_or_make(
        self, name: str, make: Callable[[], LLMEngine] | None, recipe: Any
    ) -> tuple[Any, bool]:
        """The engine of that name, made now if there is none, and whether it belongs to the
        registry.

        `recipe` describes the engine that `make` makes; if `make` is None, an engine is only looked
        for. Raises `ConfigError` if the name stands for an engine of another recipe.
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

    @contextlib.contextmanager
    def replica(self, name: str) -> Iterator[int]:
        """A number for an engine called `name`, which no other engine of that name has while the
        context lasts.
        """
        taken = self._replicas[name]
        number = next(number for number in itertools.count() if number not in taken)
        taken.add(number)
        try:
            yield number
        finally:
            taken.discard(number)
            if not taken:
                del self._replicas[name]

    async def end_with_loop(self) -> None:
        """Stop the engines that were made here when the event loop ends."""

        async def at_end() -> AsyncGenerator[None, None]:
            try:
                yield
            finally:
                await self.stop()

        if self._end is None:
            self._end = at_end()
            await anext(self._end)

    def __iter__(self) -> Iterator[str]:
        return iter(sorted({name for _, name in self._named}))

    async def stop(self, name: str | None = None) -> None:
        """Stop the engines that were made here, or the one of that name, and forget them."""
        for made in [name] if name is not None else list(self._made):
            if self._made.pop(made, None) is not None:
                await self._named.pop((DEFAULT_APP, made)).stop()


_of_loops: WeakKeyDictionary[asyncio.AbstractEventLoop, Engines] = WeakKeyDictionary()


def engines() -> Engines:
    """The engines and handles of the running event loop, by their names. Raises `RuntimeError`
    outside of one.
    """
    return _of_loops.setdefault(asyncio.get_running_loop(), Engines())


def stop_engines(name: str | None = None) -> None:
    """Stop the named engines of the background loop, or the one of that name: those that work
    without an event loop of its own has made.

    Inside an event loop: `await engines().stop()`.
    """

    async def stop() -> None:
        await engines().stop(name)

    background.run(stop())


@dataclass(frozen=True)
class EngineSource:
    """Where a processor's stages get their engine. All stages have one source, and so one engine.

    `shared` is an engine object or a name. None: an engine of the processor's own, called `name`,
    which ends with its last user. `kind`, `model` and `engine_kwargs` make it. A source can be
    pickled, unless it holds an object.
    """

    kind: str
    model: str | None
    engine_kwargs: Mapping[str, Any] = field(default_factory=dict)
    shared: str | LLMEngine | None = None
    name: str = field(default_factory=lambda: f"processor-{uuid.uuid4().hex[:8]}")

    def __post_init__(self) -> None:
        if self.shared is not None and not isinstance(self.shared, str | LLMEngine):
            raise ConfigError(
                f"must be an engine's name or an engine object, not a {type(self.shared).__name__}",
                field="engine",
            )

    @contextlib.asynccontextmanager
    async def running(self, *, per_worker: bool = False) -> AsyncGenerator[Supervisor, None]:
        """The supervisor of the started engine. With `per_worker`, each worker gets an engine of
        its own, unless the engine is shared by name or object.
        """
        names, shared, made = engines(), self.shared, False
        with names.replica(self.name) if per_worker else contextlib.nullcontext(0) as replica:
            name = f"{self.name}/{replica}"
            if isinstance(shared, LLMEngine):
                engine = shared
            else:
                kind, model, options = self.kind, self.model, self.engine_kwargs
                recipe = {"engine": kind, "model": model, "engine_kwargs": dict(options)}
                make = (
                    partial(engine_for, model, kind, options) if model or shared is None else None
                )
                engine, made = names.get_or_make(shared or name, make, recipe)
            supervisor = supervisor_of(engine)
            supervisor.stays |= made and shared is not None
            try:
                async with supervisor.running():
                    if made and shared is not None:
                        await names.end_with_loop()
                    yield supervisor
            finally:
                if shared is None and not supervisor.in_use:
                    names.remove(name)

    @property
    def model_source(self) -> str | None:
        """What the engine loads; None if that is not known beforehand."""
        return self.shared.model_source if isinstance(self.shared, LLMEngine) else self.model


def engine_for(
    model: str | None,
    engine: str | LLMEngine | None,
    engine_kwargs: Mapping[str, Any] | None,
    *,
    deterministic: bool = False,
) -> LLMEngine:
    """The engine a job asks for, not started yet if it is made here.

    `engine` None means "simulated" if the model is called so, else "openvino". `model` None means
    "demo", or for "remote" "auto": the model that the server has. `deterministic`: the same request
    gets the same answer. Raises `ConfigError`.
    """
    if isinstance(engine, LLMEngine):
        for name, value in (
            ("model", model),
            ("engine_kwargs", engine_kwargs),
            ("deterministic", deterministic or None),
        ):
            if value is not None:
                raise ConfigError(
                    "has no meaning beside an engine object, which has its own",
                    field=name,
                    value=value,
                )
        return engine
    if engine is not None and not isinstance(engine, str):
        raise ConfigError(
            f"must be a name or an engine object, not a {type(engine).__name__}", field="engine"
        )
    if model is not None and not model.strip():
        raise ConfigError("is empty; leave it out for the default", field="model")
    if engine is None:
        engine = "simulated" if model == "simulated" else "openvino"
    if model is None:
        model = {"simulated": "simulated", "remote": "auto"}.get(engine, "demo")
    cls = engine_class(engine)
    options = with_deterministic(cls, engine_kwargs or {}) if deterministic else engine_kwargs
    return cls(model, engine_kwargs=options)
