"""The replicas of a Ray Serve deployment, as an ingress sees them. Implements
`penstock.serve.replicas.runtime.Replicas`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from penstock.errors import EngineStartError, OverloadedError
from penstock.ray.state import ClusterStore, cluster_secret
from penstock.serve.replicas.model import RemoteModel
from penstock.serve.replicas.runtime import ReplicaInfo

METADATA = "penstock"
"""The key under which a replica publishes its address."""

_running: dict[tuple[str, str], tuple[ReplicaInfo, ...]] = {}
"""Running replicas by application and deployment. Ray's router thread replaces whole tuples; other
threads read.
"""


def publish(app: str, deployment: str, replicas: Iterable[Any]) -> None:
    """Store the replicas that Ray's router reports."""
    infos = tuple(
        _info(replica.replica_id.unique_id, replica.replica_metadata)
        for replica in replicas
        if METADATA in replica.replica_metadata
    )
    if _running.get((app, deployment)) != infos:
        _running[app, deployment] = infos


class RayReplicas:
    """The replicas behind `handle`. `obtain` counts as a queued request, which scales up from
    zero.
    """

    def __init__(self, handle: DeploymentHandle[Any], model_id: str) -> None:
        # `options` makes the handle subscribe to the controller; it calls no replica.
        self._handle = handle.options(method_name="record_replica_metadata")
        self._key = (handle.app_name, handle.deployment_name)
        self._model_id = model_id

    def current(self) -> tuple[ReplicaInfo, ...]:
        return _running.get(self._key, ())

    async def obtain(self) -> ReplicaInfo:
        """A running replica; Ray starts one if there is none. Raises `OverloadedError`, or
        `EngineStartError` if Ray cannot deploy it.
        """
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
    """A deployed model as a handle of ours, bound to the caller's event loop. Calls one replica,
    and so starts one if there is none.
    """
    config, mark = await handle.connection.remote()
    replicas = RayReplicas(handle, config.model_id)
    return RemoteModel(
        config, replicas, key=await cluster_secret(), desired=ClusterStore(mark, config.model_id)
    )


def _info(replica_id: str, metadata: dict[str, Any]) -> ReplicaInfo:
    return ReplicaInfo(id=replica_id, **metadata[METADATA])
