"""Keeps a KV-aware policy informed of what one replica has cached."""

from __future__ import annotations

import asyncio
import logging
from contextlib import closing

from penstock.balance.policies.kv_aware import KVAware
from penstock.errors import ReplicaLostError
from penstock.serve.replicas.cache_messages import PATH, ChangeReader
from penstock.serve.replicas.client import Address
from penstock.serve.replicas.info import ReplicaInfo

AGAIN_S = 1.0
"""Seconds before a replica is asked again whose stream has ended while it is still listed."""
_log = logging.getLogger(__name__)


class CacheFollower:
    """Follows until `stop`. Belongs to one event loop."""

    def __init__(self, info: ReplicaInfo, key: str, policy: KVAware) -> None:
        self._id = info.id
        self._address = Address(info.host, info.port)
        self._headers = [("authorization", f"Bearer {key}")]
        self._policy = policy
        self._following = asyncio.create_task(self._follow())

    def stop(self) -> None:
        self._following.cancel()
        self._address.close()

    async def _follow(self) -> None:
        while True:
            try:
                if not await self._read():
                    _log.warning(
                        "replica '%s' does not tell what it has cached: it is chosen by its load",
                        self._id,
                    )
                    return
            except ReplicaLostError:
                pass
            self._policy.gone(self._id)
            await asyncio.sleep(AGAIN_S)

    async def _read(self) -> bool:
        """Take over what it tells; False where it tells nothing."""
        reader = ChangeReader()
        with closing(await self._address.request("GET", PATH, self._headers, b"")) as reply:
            if reply.status >= 400:
                return reply.status >= 500 and reply.status != 501
            while part := await reply.read():
                for change in reader.changes_of(part):
                    if change.anew:
                        self._policy.gone(self._id)
                    self._policy.removed(self._id, change.removed)
                    self._policy.stored(self._id, change.stored)
        return True
