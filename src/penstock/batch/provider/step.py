"""The step of a job that a provider's batches answer."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncGenerator, Awaitable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from penstock.batch.pipeline.pipeline import EngineStep, Tries
from penstock.batch.provider.engine import (
    AnthropicBatchEngine,
    Asking,
    BatchApiEngine,
    OpenAIBatchEngine,
    asking,
)
from penstock.batch.rows.requests import ColumnRequests
from penstock.batch.rows.row import Outcome, Row
from penstock.errors import ConfigError

if TYPE_CHECKING:
    from penstock.batch.job.job import Job


@dataclass
class ProviderStep(EngineStep):
    """Tells the engine which row asks, so that its lines have the same ids in each run."""

    engine: BatchApiEngine

    def keep(self, folder: Path, key: int, generation: int) -> int | None:
        self.engine.keep(folder, key, generation)
        return self.engine.options.rows_in_flight

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncGenerator[int, None]:
        if isinstance(self.form, ColumnRequests):
            self.engine.check(self.form.sampling)
        async with super().running() as most:
            yield most

    def answer(self, row: Row, tries: Tries) -> Awaitable[Outcome]:
        # Rows with one digest ask once, unless each is to have an answer of its own.
        digest = row.digest.hex()
        name = digest[:24] if row.shareable else f"{digest[:12]}-{row.index}"
        asking.set(Asking(name))
        return super().answer(row, tries)

    def end(self) -> None:
        super().end()
        self.engine.let_go()


def provider_engine(job: Job, name: str) -> BatchApiEngine:
    """The engine of a job through a provider's batches. Raises `ConfigError`."""
    cls = OpenAIBatchEngine if name == OpenAIBatchEngine.name else AnthropicBatchEngine
    if job.runtime != "local":
        raise ConfigError(f"{cls.name} runs in this process", field="runtime", value=job.runtime)
    if job.replicas != 1:
        raise ConfigError(f"{cls.name} has one queue", field="replicas", value=job.replicas)
    if job.output is None or os.fspath(job.output) == "-":
        raise ConfigError(
            f"{cls.name} needs an output whose job is kept, so that nothing is paid for twice",
            field="output",
        )
    model = job.model
    if not isinstance(model, str) or not model.strip():
        raise ConfigError("must name one model of the provider", field="model", value=model)
    if job.deterministic:
        cls.deterministic_options()
    return cls(model, engine_kwargs=cast(Mapping[str, Any] | None, job.engine_kwargs))
