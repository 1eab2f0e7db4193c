"""The replicas of a Ray Serve deployment, as an ingress sees them. Keeps
`penstock.serve.replicas.info.Replicas`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from penstock.errors import EngineStartError, OverloadedError
from penstock.ray.state import ClusterStore, cluster_secret
from penstock.serve.replicas.info import ReplicaInfo
from penstock.serve.replicas.model import RemoteModel

METADATA = "penstock"
"""The key under which a replica publishes its address."""

_running: dict[tuple[str, str], tuple[ReplicaInfo, ...]] = {}
"""By application and deployment. Written by Ray's router thread, a whole tuple at a time, and read
by the others.
"""


def publish(app: str, deployment: str, replicas: Iterable[Any]) -> None:
    """Take over what Ray's router was told."""
    infos = tuple(
        _info(replica.replica_id.unique_id, replica.replica_metadata)
        for replica in replicas
        if METADATA in replica.replica_metadata
    )
    if _running.get((app, deployment)) != infos:
        _running[app, deployment] = infos


class RayReplicas:
    """The replicas behind `handle`. Asking for one counts as a queued request, which is what scales
    up from zero.
    """

    def __init__(self, handle: DeploymentHandle[Any], model_id: str) -> None:
        # With options, a handle begins to listen to the controller; it calls no replica.
        self._handle = handle.options(method_name="record_replica_metadata")
        self._key = (handle.app_name, handle.deployment_name)
        self._model_id = model_id

    def current(self) -> tuple[ReplicaInfo, ...]:
        return _running.get(self._key, ())

    async def obtain(self) -> ReplicaInfo:
        """One that runs; Ray starts it if there is none."""
        try:
            async with self._handle.choose_replica() as chosen:
                return _info(chosen.replica_id, chosen.replica_metadata)
        except BackPressureError as error:
            raise OverloadedError(
                f"too many requests wait for '{self._model_id}'", error.retry_after_s or 1.0
            ) from None
        except DeploymentUnavailableError:
            raise EngineStartError(
                f"Ray Serve could not deploy '{self._model_id}'; `serve status` says why"
            ) from None


async def served_model(handle: DeploymentHandle[Any]) -> RemoteModel:
    """A deployed model as a handle of ours, for the event loop of the caller. Asks one replica, and
    so starts one where there is none.
    """
    config, mark = await handle.connection.remote()
    replicas = RayReplicas(handle, config.model_id)
    return RemoteModel(
        config, replicas, key=await cluster_secret(), desired=ClusterStore(mark, config.model_id)
    )


def _info(replica_id: str, metadata: dict[str, Any]) -> ReplicaInfo:
    return ReplicaInfo(id=replica_id, **metadata[METADATA])
