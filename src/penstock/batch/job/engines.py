"""The engine of a job: made here, replicated here or on Ray, that of a running server, or a
provider's batches.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from penstock import lazy
from penstock.batch.job.forms import check_unset
from penstock.batch.job.policy import ErrorPolicy
from penstock.batch.pipeline.pipeline import EngineStep
from penstock.batch.rows.requests import EngineForm
from penstock.engines.base import LLMEngine
from penstock.engines.registry import engine_for
from penstock.errors import ConfigError
from penstock.llm_config.batch import CLASS_HEADER
from penstock.llm_config.engine_choice import PROVIDERS

if TYPE_CHECKING:
    from penstock.batch.job.job import Job


def engine_of(job: Job, model: Any, engine: Any, engine_kwargs: Any) -> LLMEngine:
    """The engine that a job asks for with these of its options. Raises `ConfigError`."""
    if isinstance(engine, str) and engine in PROVIDERS:
        from penstock.batch.provider.step import provider_engine

        return provider_engine(job, engine)
    made = engine_for(model, engine, engine_kwargs, deterministic=job.deterministic)
    if job.runtime == "local" and job.replicas == 1:
        return made
    if made is engine:
        raise ConfigError(
            "an engine object is in this process, and replicas are in others", field="engine"
        )
    if job.adapter is not None and os.path.isdir(job.adapter):
        made.adapters[job.adapter] = job.adapter  # replicas get it when they are deployed
    spread = lazy.load_runtime(lazy.RUNTIME_ENGINES, job.runtime)
    replicated: LLMEngine = spread(made, job.replicas)
    return replicated


def step_of(
    engine: LLMEngine, form: EngineForm, adapter: str | None, most: int, policy: ErrorPolicy
) -> EngineStep:
    """The step of a job with one engine, which a row may ask `most` times."""
    if engine.name in PROVIDERS:
        from penstock.batch.provider.step import ProviderStep

        return ProviderStep(cast(Any, engine), form, adapter, most, policy)
    return EngineStep(engine, form, adapter, most, policy)


def attached(job: Job, url: str) -> LLMEngine:
    """A running server's engine, asked in the batch class. Raises `ConfigError`."""
    own = ("engine", "deterministic", "runtime")
    check_unset(job, own, "is the server's, to which the job is attached")
    if not url.startswith(("http://", "https://")):
        raise ConfigError(
            "must be a server's URL, such as http://127.0.0.1:8000", field="attach", value=url
        )
    given = dict(cast(Mapping[str, Any], job.engine_kwargs or {}))
    for name in ("base_url", "upstreams"):
        if name in given:
            raise ConfigError("is what attach says", field=f"engine_kwargs.{name}")
    url = url.rstrip("/")
    where: dict[str, Any] = {
        "base_url": url if url.endswith("/v1") else f"{url}/v1",
        "headers": {**given.pop("headers", {}), CLASS_HEADER: "batch"},
    }
    if os.environ.get("PENSTOCK_API_KEY"):
        where["api_key_env"] = "PENSTOCK_API_KEY"
    return engine_for(cast(str | None, job.model), "remote", {**where, **given})
