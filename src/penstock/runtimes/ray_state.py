"""What operators asked of a model, in the cluster's own store. Keeps `penstock.serve.desired.DesiredStore`."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from ray.experimental import internal_kv

from penstock.config import import_object

STATE = "penstock.serve.desired:DesiredState"
NAMESPACE = b"penstock"


class ClusterStore:
    """The state of one model of one deployment of an application, which `key` tells from those before it."""

    def __init__(self, key: str, model_id: str) -> None:
        self._key = f"{key}/{model_id}".encode()
        self._form: Any = import_object(STATE, "the desired state")

    async def load(self) -> Any:
        """What was saved last."""
        data = await asyncio.to_thread(internal_kv._internal_kv_get, self._key, namespace=NAMESPACE)
        return self._form() if data is None else msgspec.json.decode(data, type=self._form)

    async def save(self, state: Any) -> None:
        """Replace it."""
        data = msgspec.json.encode(state)
        await asyncio.to_thread(internal_kv._internal_kv_put, self._key, data, True, namespace=NAMESPACE)
