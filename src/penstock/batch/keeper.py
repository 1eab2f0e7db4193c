"""Looks after a job's engine: starts it, starts it again when it dies, and makes adapters ready once each."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from typing import Any

from penstock.engines.base import LLMEngine, engine_class
from penstock.errors import ConfigError, EngineDeadError, EngineError, JobError, ModelNotFoundError

RESTARTS_WITHOUT_PROGRESS = 3
_NOT_DECIDING = frozenset(
    {
        *("num_threads", "max_num_seqs", "max_num_batched_tokens", "kv_cache_memory_bytes", "kv_cache_blocks"),
        *("enable_prefix_caching", "max_loras", "properties"),
        *("gpu_memory_utilization", "tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size"),
        *("enforce_eager", "block_size", "max_cpu_loras", "disable_log_stats", "distributed_executor_backend"),
        *("time_to_first_token_ms", "time_per_token_ms", "batch_slowdown", "prefill_ms_per_token", "start_ms"),
        *("error_rate", "slow_rate", "slow_factor", "hang_rate", "die_after", "die_times"),
    }
)


def engine_for(model: str | None, engine: str | LLMEngine | None, engine_kwargs: Mapping[str, Any] | None) -> LLMEngine:
    """The engine a job asks for, not started yet if it is made here.

    `engine` None means "simulated" for the model of that name, else "openvino"; `model` None means "demo".
    Raises `ConfigError`.
    """
    if isinstance(engine, LLMEngine):
        for name, value in (("model", model), ("engine_kwargs", engine_kwargs)):
            if value is not None:
                raise ConfigError("has no meaning beside an engine object, which has its own", field=name, value=value)
        return engine
    if engine is not None and not isinstance(engine, str):
        raise ConfigError(f"must be a name or an engine object, not a {type(engine).__name__}", field="engine")
    if engine is None:
        engine = "simulated" if model == "simulated" else "openvino"
    if model is None:
        model = "simulated" if engine == "simulated" else "demo"
    return engine_class(engine)(model, engine_kwargs=engine_kwargs)


def deciding_options(engine: LLMEngine) -> dict[str, Any]:
    """The engine's options that are part of what the job is: all but those of speed, memory and staged faults."""
    return {name: value for name, value in engine.engine_kwargs.items() if name not in _NOT_DECIDING}


class EngineKeeper:
    """Holds one engine for the time of a job. What it started it stops; a running engine stays running."""

    def __init__(self, engine: LLMEngine, *, restarts: int = RESTARTS_WITHOUT_PROGRESS) -> None:
        self.engine = engine
        self.generation = 0
        self._restarts = restarts
        self._fruitless = 0
        self._started = False
        self._reviving = asyncio.Lock()
        self._adapters: dict[str, asyncio.Future[None]] = {}

    async def start(self) -> None:
        """Start the engine unless it runs. Raises `EngineStartError`."""
        try:
            await self.engine.check_health()
        except EngineDeadError:
            self._started = True
            await self.engine.start()

    async def stop(self) -> None:
        """Stop the engine if it was started here."""
        if self._started:
            await self.engine.stop()

    def progressed(self) -> None:
        """A row was finished: the engine is of use."""
        self._fruitless = 0

    async def revive(self, generation: int) -> None:
        """Start the engine again, unless that was done since `generation`.

        Raises `JobError` when it keeps dying without finishing a row.
        """
        async with self._reviving:
            if generation != self.generation:
                return
            self._fruitless += 1
            if self._fruitless > self._restarts:
                raise JobError(f"the engine died {self._fruitless} times without finishing a row")
            self._adapters.clear()
            try:
                await self.engine.stop()
                await self.engine.start()
            except EngineError as error:
                raise JobError(f"the engine died and does not start again: {error}") from error
            self.generation += 1

    async def adapter(self, name: str) -> None:
        """Make an adapter usable, once however many rows ask at a time. Raises `ModelNotFoundError`."""
        ready = self._adapters.get(name)
        if ready is None:
            ready = self._adapters[name] = asyncio.ensure_future(self._load_adapter(name))
        await asyncio.shield(ready)

    async def _load_adapter(self, name: str) -> None:
        try:
            path = adapter_path(self.engine, name)
            if path is not None:
                await self.engine.resolve_lora(name, path)
        except EngineError:
            self._adapters.pop(name, None)  # the next row may have more luck
            raise


def adapter_path(engine: LLMEngine, name: str) -> str | None:
    """The directory of an adapter, or None if the engine knows it already. Raises `ModelNotFoundError`."""
    if name in engine.adapters:
        return None
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
