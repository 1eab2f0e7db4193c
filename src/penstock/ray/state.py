"""What is kept in the cluster's own store: the replicas' secret, and what operators asked of a
model.
"""

from __future__ import annotations

import asyncio
import secrets
from urllib.parse import quote

import msgspec
from ray.experimental import internal_kv

from penstock.serve.replicas.desired_state import DesiredState

NAMESPACE = b"penstock"
SECRET = b"secret"
KEPT = 64
"""States that are kept behind the last one: so far may a writer lag that has not seen it."""


async def cluster_secret() -> str:
    """What replicas want to be shown by who asks them. One for all of a cluster, so that ingresses
    and replicas of one application know each other while a new version replaces an old one.
    """
    return await asyncio.to_thread(_cluster_secret)


def _cluster_secret() -> str:
    mine = secrets.token_hex(16).encode()
    internal_kv._internal_kv_put(SECRET, mine, False, namespace=NAMESPACE)  # whoever comes first
    kept: bytes = internal_kv._internal_kv_get(SECRET, namespace=NAMESPACE)
    return kept.decode()


class ClusterStore:
    """The state of one model of an application, which `mark` tells from those deployed before it.
    Keeps `penstock.serve.replicas.desired_state.DesiredStore`.

    Each state has a key of its own, with its version as the last part, which is written once.
    """

    def __init__(self, mark: str, model_id: str) -> None:
        self._prefix = f"{mark}/{quote(model_id, safe='')}/"

    async def load(self) -> DesiredState:
        return await asyncio.to_thread(self._load)

    async def save(self, state: DesiredState) -> bool:
        """Append a state. False if another one has its version."""
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
        return f"{self._prefix}{version:012}"  # so that they sort
