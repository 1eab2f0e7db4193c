"""State in the cluster's key-value store: the replicas' secret, and the desired state of each
model.
"""

from __future__ import annotations

import asyncio
import secrets
from urllib.parse import quote

import msgspec
from ray.experimental import internal_kv

from penstock.serve.replicas.runtime import DesiredState

NAMESPACE = b"penstock"
SECRET = b"secret"
KEPT = 64
"""Old states that are kept: a writer may lag so many versions behind."""


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

    Each version has a key of its own, which is written once.
    """

    def __init__(self, mark: str, model_id: str) -> None:
        self._prefix = f"{mark}/{quote(model_id, safe='')}/"

    async def load(self) -> DesiredState:
        """The last state that was saved; the default state if there is none."""
        return await asyncio.to_thread(self._load)

    async def save(self, state: DesiredState) -> bool:
        """Append a state. Returns False if its version is taken."""
        return await asyncio.to_thread(self._save, state)

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
