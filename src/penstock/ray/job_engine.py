"""The replicas of a batch job on Ray; the job's rows, journal and output stay in this process."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any

import ray
from ray import serve

from penstock.engines.base import LLMEngine, able_together
from penstock.errors import EngineStartError, UnsupportedError
from penstock.ray.application import NAME_PREFIX, build_deployment
from penstock.ray.cluster import connect, new_application
from penstock.ray.replicas import served_model
from penstock.serve.config.placement import cpus
from penstock.serve.config.settings import HttpSettings
from penstock.serve.models.replicated_engine import MODEL_ID, JobReplicas

JOB_PREFIX = "penstock-job-"
POLL_S = 0.2


class RayEngine(JobReplicas[Any]):
    """Deploys the replicas on Ray Serve. They end with this engine, as does a cluster that it had
    to start.
    """

    def __init__(self, engine: LLMEngine, replicas: int) -> None:
        super().__init__(engine, replicas)
        self._replicas = replicas
        self._app = ""
        self._own_cluster = False

    # Life
    async def start(self) -> None:
        self._own_cluster = not await asyncio.to_thread(connect, cpus([self._config]))
        try:
            handle = await asyncio.to_thread(self._deploy)
            # Ray Serve does not announce it.
            while not await asyncio.to_thread(self._is_deployed):  # noqa: ASYNC110
                await asyncio.sleep(POLL_S)
            capabilities = await handle.capabilities.remote()
            self._model = await served_model(handle)
        except BaseException:
            await asyncio.shield(asyncio.to_thread(self._remove))
            raise
        self.capabilities = able_together([capabilities] * self._replicas)

    async def stop(self) -> None:
        model, self._model = self._model, None
        if model is not None:
            await model.stop()
            await asyncio.to_thread(self._remove)

    def _deploy(self) -> Any:
        host = "127.0.0.1" if self._own_cluster else None
        application = build_deployment(self._config, settings=HttpSettings(), replica_host=host)
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        serve.start(proxy_location="Disabled")
        self._app = new_application(JOB_PREFIX)
        serve.run_many(
            [serve.RunTarget(application, self._app, route_prefix=None)],
            wait_for_applications_running=False,
        )
        return serve.get_deployment_handle(f"{NAME_PREFIX}{MODEL_ID}", self._app)

    def _is_deployed(self) -> bool:
        """Whether the replicas run. Raises `EngineStartError` if they cannot be started."""
        application = serve.status().applications.get(self._app)
        if application is None:
            return False
        for deployment in application.deployments.values():
            if deployment.status == "DEPLOY_FAILED":  # an unhealthy one may recover
                errors = [
                    line.strip() for line in deployment.message.splitlines() if "Error:" in line
                ]
                why = (
                    errors[-1].partition("Error: ")[2]
                    if errors
                    else " ".join(deployment.message.split())
                )
                raise EngineStartError(f"Ray Serve could not start the replicas: {why}")
        return bool(application.status == "RUNNING")

    def _remove(self) -> None:
        with contextlib.suppress(Exception):  # the cluster may be gone
            serve.delete(self._app)
        if self._own_cluster:
            ray.shutdown()

    async def resolve_lora(self, name: str, path: str) -> None:
        """Raise `UnsupportedError` for an adapter that was not known at the deployment."""
        if name not in await self._started().adapters():
            raise UnsupportedError(
                f"on Ray the adapters are known before the replicas start, and '{name}' was not",
                param="adapter",
            )
