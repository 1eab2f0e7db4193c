"""Where a server in Ray's form runs: in this process, or as a replica of a runtime."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from penstock import lazy
from penstock.engines.base import LLMEngine
from penstock.llm_config import LLMConfig
from penstock.serve.config.settings import HttpSettings
from penstock.serve.models.handle import ModelHandle
from penstock.serve.models.local import LocalModel

Outside = Callable[[LocalModel], ModelHandle]
"""What ingresses see of a model: itself, or a user's server in front of it."""


class Host(Protocol):
    """Runs the one model of a server."""

    model: Any
    """A `LocalModel`."""

    async def start(self) -> None:
        """Load the model; returns when it answers."""

    async def stop(self) -> None:
        """Stop the engine and free its memory."""


class Here:
    """The side of a server whose engine runs in this process."""

    def __init__(self, config: LLMConfig, engine: LLMEngine | None) -> None:
        self.model = LocalModel(config, engine=engine)

    async def start(self) -> None:
        await self.model.server.start()

    async def stop(self) -> None:
        await self.model.stop(0.0)


class Given:
    """A model that its owner starts and stops."""

    def __init__(self, model: LocalModel) -> None:
        self.model = model

    async def start(self) -> None:
        pass

    async def stop(self) -> None:
        pass


class Hosts(Protocol):
    """What servers and ingresses in Ray's form need of a runtime."""

    async def replica(
        self,
        config: LLMConfig,
        engine: LLMEngine | None,
        outside: Outside,
        about: Mapping[str, Any],
    ) -> Host | None:
        """The host of a server that is a replica of the runtime; else None."""

    def options(self, cls: Any, config: LLMConfig) -> dict[str, Any]:
        """The options that deploy a class of servers."""

    def taken(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options of deployments that this version of the runtime takes."""

    async def models(
        self, deployments: Mapping[str, Any], configs: Mapping[str, LLMConfig]
    ) -> dict[str, ModelHandle]:
        """The models behind the runtime's handles, by their ids."""

    def deployable(self, cls: type) -> type:
        """The class of an ingress, as the runtime deploys it."""

    def request_id(self) -> str:
        """The runtime's id of the request under way; empty outside of one."""

    def adapter(self) -> str:
        """The adapter ("base:name") that the caller of a handle chose; empty for none."""

    def at_root(self, app: Any) -> Any:
        """The application behind the runtime's proxy."""


def hosts() -> Hosts | None:
    """What the runtime whose package this process has loaded offers; None without one."""
    for name in lazy.RUNTIME_SERVERS:
        if name in sys.modules:
            found: Hosts = lazy.load_runtime(lazy.RUNTIME_SERVERS, name)()
            return found
    return None


def settings_of(about: Mapping[str, Any]) -> HttpSettings:
    """The settings of a server's own application."""
    settings: HttpSettings = about.get("settings") or HttpSettings()
    return settings
