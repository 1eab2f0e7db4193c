"""What a runtime knows of a model: its replicas, and the state that operators want them in.

The state is kept apart from the replicas, so one that starts later takes it over as well.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import msgspec
from msgspec import Struct

from penstock.engines.base import Capabilities
from penstock.engines.tasks import PauseMode
from penstock.llm_config import LLMConfig
from penstock.serve.models.control import ControlPlane


class ReplicaInfo(Struct, frozen=True, omit_defaults=True):
    """A running replica and where its server listens. `context_length` is in tokens.
    `reads_headers`: a user's own server or engine gets the headers of clients.
    """

    id: str
    host: str
    port: int
    context_length: int | None = None
    reads_headers: bool = False


class Replicas(Protocol):
    """A runtime's view of one model's replicas."""

    def current(self) -> tuple[ReplicaInfo, ...]:
        """The replicas that run now; the same tuple until that changes. Starts no replica."""

    async def obtain(self) -> ReplicaInfo:
        """A running replica, which the runtime starts if there is none.

        Raises `EngineStartError` if it cannot, `OverloadedError` if too many wait for it already.
        """


class DesiredState(Struct, frozen=True):
    """The state that every replica is to be in. `asleep` is the level of sleep, None for awake.
    `version` grows with every change. `adapters` maps names to paths, and to None where operators
    took an adapter away.
    """

    version: int = 0
    asleep: int | None = None
    paused: PauseMode | None = None
    adapters: dict[str, str | None] = {}

    def after(self, method: str, options: Mapping[str, Any]) -> DesiredState:
        """The state after a control method; this one if the method changes nothing."""
        changes: dict[str, dict[str, Any]] = {
            "sleep": {"asleep": options.get("level", 1)},
            "wakeup": {"asleep": None},
            "pause": {"paused": options.get("mode", "wait")},
            "resume": {"paused": None},
            "load_lora_adapter": {
                "adapters": {**self.adapters, options.get("lora_name"): options.get("lora_path")}
            },
            "unload_lora_adapter": {"adapters": {**self.adapters, options.get("lora_name"): None}},
        }
        if method not in changes:
            return self
        return msgspec.structs.replace(self, version=self.version + 1, **changes[method])

    async def apply(self, server: ControlPlane, holds: Callable[[], bool] = lambda: True) -> None:
        """Bring a replica's server into this state, as long as it `holds`."""
        await server.set_adapters(self.adapters)
        if not holds():
            return
        if self.asleep is None:
            await server.wakeup()
        elif not server.asleep:
            await server.sleep(self.asleep)
        if not holds():
            return
        if self.paused is None:
            if server.paused is not None:
                await server.resume()
        elif server.paused is None:
            await server.pause(self.paused)


class DesiredStore(Protocol):
    """Keeps the desired state of one model where all its replicas and ingresses find it, and what
    the engine of a configuration can do, by the configuration's digest.
    """

    async def load(self) -> DesiredState:
        """What was saved last; the plain state if nothing was."""

    async def save(self, state: DesiredState) -> bool:
        """Append the next version. False, and nothing changes, if another one was faster."""

    async def note(self, digest: str, able: Capabilities) -> None:
        """Keep what an engine can do, in place of what was kept."""

    async def noted(self, digest: str) -> Capabilities | None:
        """What was kept last; None if nothing was."""


def engine_digest(config: LLMConfig) -> str:
    """A name for what decides what the engine of a configuration can do."""
    loading = config.model_loading_config
    decide = [config.engine_name, config.model_source, loading.tokenizer_source]
    text = repr([*decide, sorted(config.engine_kwargs.items()), config.lora_config])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


async def change_desired(
    store: DesiredStore, method: str, options: Mapping[str, Any]
) -> DesiredState:
    """Save what a control method asks for, on top of what others ask for meanwhile. Returns the
    state that holds now.
    """
    while True:
        state = await store.load()
        changed = state.after(method, options)
        if changed is state or await store.save(changed):
            return changed


class InMemoryStore:
    """A store within one process."""

    def __init__(self) -> None:
        self.state = DesiredState()
        self.able: dict[str, Capabilities] = {}

    async def load(self) -> DesiredState:
        return self.state

    async def save(self, state: DesiredState) -> bool:
        """Put it after the last one."""
        if state.version != self.state.version + 1:
            return False
        self.state = state
        return True

    async def note(self, digest: str, able: Capabilities) -> None:
        self.able[digest] = able

    async def noted(self, digest: str) -> Capabilities | None:
        return self.able.get(digest)
