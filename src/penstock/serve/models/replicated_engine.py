"""Engines of batch jobs with several replicas: what they share, and the one on this machine."""

from __future__ import annotations

import asyncio
from typing import Any, Generic, TypeVar

from penstock.engines.base import LLMEngine, able_together
from penstock.engines.tasks import Batches, generated
from penstock.errors import ConfigError, EngineDeadError
from penstock.llm_config import LLMConfig
from penstock.serve.models.handle import ModelHandle
from penstock.serve.models.local import local_counts
from penstock.serve.models.replicated import ReplicatedModel
from penstock.types import ChatRequest, CompletionRequest

MODEL_ID = "model"
M = TypeVar("M", bound=ModelHandle)


class JobReplicas(LLMEngine, Generic[M]):
    """Stands in a batch job for `replicas` copies of `engine`, which itself is not started.

    A replica that has died is restarted by the model that runs the replicas. Its requests raise
    `EngineDeadError`, unless another replica could take them. They can be retried at once.
    """

    def __init__(self, engine: LLMEngine, replicas: int) -> None:
        super().__init__(
            engine.model_source, engine_kwargs=engine.engine_kwargs, adapters=engine.adapters
        )
        self.name = engine.name  # type: ignore[misc] # rows name the engine that the replicas run
        self.deterministic = engine.deterministic
        self._deciding_kwargs = engine.deciding_kwargs
        self._config = LLMConfig.from_dict(
            {
                "model_loading_config": {"model_id": MODEL_ID, "model_source": engine.model_source},
                "llm_engine": engine.name,
                "engine_kwargs": dict(engine.engine_kwargs),
                "lora_config": {"adapters": dict(engine.adapters)},
                "deployment_config": {"num_replicas": replicas, "max_queued_requests": -1},
            }
        )
        self._model: M | None = None

    @property
    def deciding_kwargs(self) -> dict[str, Any]:
        return self._deciding_kwargs

    # Life
    async def restart(self) -> None:
        """Does nothing: each replica restarts by itself, and the next request waits for one."""

    async def check_health(self) -> None:
        self._started()

    def _started(self) -> M:
        if self._model is None:
            raise EngineDeadError("the replicas do not run", suspects=False)
        return self._model

    # Requests
    def generate(self, request: ChatRequest | CompletionRequest) -> Batches:
        return generated(self._started(), request)

    async def answer(self, task: str, request: Any) -> Any:
        return await getattr(self._started(), task)(request)


class ReplicatedEngine(JobReplicas[ReplicatedModel]):
    """The replicas are on this machine, and divide its cores. Raises `ConfigError`."""

    def __init__(self, engine: LLMEngine, replicas: int) -> None:
        super().__init__(engine, replicas)
        if local_counts(self._config)[1] != replicas:
            raise ConfigError(
                f"the {engine.name} engine runs elsewhere or on accelerators, and only CPU cores"
                " are parted here",
                field="replicas",
                value=replicas,
                hint="Use the runtime 'ray', or engine_kwargs.data_parallel_size.",
            )

    # Life
    async def start(self) -> None:
        model = ReplicatedModel(self._config)
        try:
            await model.start()
        except BaseException:
            await model.stop(0.0)
            raise
        self._model = model
        self.capabilities = able_together(
            [one.model.server.engine.capabilities for one in model.crew.replicas]
        )

    async def stop(self) -> None:
        model, self._model = self._model, None
        if model is not None:
            await model.stop(0.0)

    # Adapters
    async def resolve_lora(self, name: str, path: str) -> None:
        servers = [one.model.server for one in self._started().crew.replicas]
        await asyncio.gather(*(server.set_adapters({name: path}) for server in servers))
        self.adapters[name] = path

    async def metrics(self) -> dict[str, float]:
        return await self._started().engine_metrics()
