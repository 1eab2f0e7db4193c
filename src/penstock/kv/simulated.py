"""The simulated engines' connector: caches move between engines of one process as counts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from penstock.kv.base import Identity, Setup, Site
from penstock.kv.vllm_config import check_config, complete_config

HELD: dict[str, set[str]] = {}
"""Engine → its requests whose caches wait for a decode engine."""


class Simulated:
    """Implements `penstock.kv.base.Connector` for simulated engines, all in one process."""

    name = "SimulatedConnector"
    tells_adapters_apart = True

    def __init__(self, config: dict[str, Any], where: str) -> None:
        check_config(config, where)
        self._config = config

    def ports(self, site: Site) -> dict[str, int]:
        """None: engines of one process need no port."""
        return {}

    def setup(self, site: Site, engine: str) -> Setup:
        """Set up an engine id, and nothing else."""
        config = complete_config(self._config, site)
        return Setup(
            config=config,
            identity=Identity(connector=self.name, engine=engine, engine_id=config["engine_id"]),
        )

    def request_params(self) -> dict[str, Any]:
        """The same parameters as NIXL's."""
        return {"do_remote_decode": True, "do_remote_prefill": False}

    def misses(self, params: Mapping[str, Any] | None, sender: Identity) -> str:
        peer = (params or {}).get("remote_engine_id")
        return (
            ""
            if peer == sender.engine_id
            else f"it comes from '{sender.engine_id}' and points to '{peer}'"
        )
