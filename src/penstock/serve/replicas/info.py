"""The replicas of a model as its runtime knows them."""

from __future__ import annotations

from typing import Protocol

from msgspec import Struct


class ReplicaInfo(Struct, frozen=True):
    """A running replica and where its server listens. `context_length` is in tokens."""

    id: str
    host: str
    port: int
    context_length: int | None = None


class Replicas(Protocol):
    """A runtime's view of one model's replicas."""

    def current(self) -> tuple[ReplicaInfo, ...]:
        """Those that run now; the same tuple until that changes. Starts none."""

    async def obtain(self) -> ReplicaInfo:
        """One that runs, which the runtime starts first if there is none.

        Raises `EngineStartError` if none can be started, `OverloadedError` if too many wait for
        that already.
        """
