"""What Ray knows of a model: the replicas of its deployment, and in the store of the cluster the
secret of its replicas and the state that operators asked for.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterable
from typing import Any
from urllib.parse import quote

import msgspec
from ray.experimental import internal_kv
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from penstock.engines.base import Capabilities
from penstock.errors import EngineStartError, OverloadedError
from penstock.llm_config import LLMConfig
from penstock.serve.replicas.model import RemoteModel
from penstock.serve.replicas.runtime import DesiredState, ReplicaInfo

NAMESPACE = b"penstock"
ABLE = b"penstock-able"
"""The namespace of what engines can do."""
SECRET = b"secret"
KEPT = 64
"""How many old states are kept: a writer may lag this many versions behind."""
METADATA = "penstock"
"""The key under which a replica publishes its address."""

_running: dict[tuple[str, str], tuple[ReplicaInfo, ...]] = {}
"""Running replicas by application and deployment. Ray's router thread replaces whole tuples."""


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
    """The replicas behind `handle`. `obtain` is a queued request to Ray: it scales up from 0."""

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
    return remote_model(config, handle, mark, await cluster_secret())


def remote_model(
    config: LLMConfig, handle: DeploymentHandle[Any], mark: str, secret: str
) -> RemoteModel:
    """The model that the deployment `mark` serves behind `handle`. Calls no replica."""
    return RemoteModel(
        config,
        RayReplicas(handle, config.model_id),
        key=secret,
        desired=ClusterStore(mark, config.model_id),
    )


def _info(replica_id: str, metadata: dict[str, Any]) -> ReplicaInfo:
    # A replica of a later version may publish more.
    return msgspec.convert({**metadata[METADATA], "id": replica_id}, ReplicaInfo)


async def cluster_secret() -> str:
    """The secret that replicas demand from their callers. The whole cluster has one, so that
    ingresses and replicas still accept each other while a new version replaces an old one.
    """
    return await asyncio.to_thread(_cluster_secret)


def _cluster_secret() -> str:
    mine = secrets.token_hex(16).encode()
    internal_kv._internal_kv_put(SECRET, mine, False, namespace=NAMESPACE)  # the first writer wins
    kept: bytes = internal_kv._internal_kv_get(SECRET, namespace=NAMESPACE)
    return kept.decode()


class ClusterStore:
    """The desired state of one model of the deployment `mark`. Implements
    `penstock.serve.replicas.runtime.DesiredStore`.

    Each version has a key of its own, which is written once. What engines can do is beside them.
    """

    def __init__(self, mark: str, model_id: str) -> None:
        self._prefix = f"{mark}/{quote(model_id, safe='')}/"

    async def load(self) -> DesiredState:
        """The last state that was saved; the default state if there is none."""
        return await asyncio.to_thread(self._load)

    async def save(self, state: DesiredState) -> bool:
        """Append a state. Returns False if its version is taken."""
        return await asyncio.to_thread(self._save, state)

    async def note(self, digest: str, able: Capabilities) -> None:
        key, value = f"{self._prefix}{digest}", msgspec.json.encode(able)
        await asyncio.to_thread(internal_kv._internal_kv_put, key, value, namespace=ABLE)

    async def noted(self, digest: str) -> Capabilities | None:
        key = f"{self._prefix}{digest}"
        data = await asyncio.to_thread(internal_kv._internal_kv_get, key, namespace=ABLE)
        return None if data is None else msgspec.json.decode(data, type=Capabilities)

    def _load(self) -> DesiredState:
        keys = internal_kv._internal_kv_list(self._prefix, namespace=NAMESPACE)
        data = internal_kv._internal_kv_get(max(keys), namespace=NAMESPACE) if keys else None
        return DesiredState() if data is None else msgspec.json.decode(data, type=DesiredState)

    def _save(self, state: DesiredState) -> bool:
        taken = internal_kv._internal_kv_put(
            self._key(state.version), msgspec.json.encode(state), False, namespace=NAMESPACE
        )
        if state.version > KEPT and not taken:
            internal_kv._internal_kv_del(self._key(state.version - KEPT), namespace=NAMESPACE)
        return not taken

    def _key(self, version: int) -> str:
        return f"{self._prefix}{version:012}"  # padded, so that keys sort by version
