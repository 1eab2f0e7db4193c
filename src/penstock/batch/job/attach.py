"""A job on the engine of a running server, beside its other users."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from penstock.engines.base import LLMEngine
from penstock.engines.registry import engine_for
from penstock.errors import ConfigError
from penstock.llm_config.batch import CLASS_HEADER

if TYPE_CHECKING:
    from penstock.batch.job.job import Job


def attached(job: Job, url: str) -> LLMEngine:
    """A running server's engine, asked in the batch class. Raises `ConfigError`."""
    for name, default in (("engine", None), ("deterministic", False), ("runtime", "local")):
        if getattr(job, name) != default:
            raise ConfigError("is the server's, to which the job is attached", field=name)
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
