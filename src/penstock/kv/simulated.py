"""The simulated engines' connector: caches move between engines of one process by being counted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from penstock.kv.base import Identity, Setup, Site
from penstock.kv.vllm_config import check_config, completed

HELD: dict[str, set[str]] = {}
"""The requests whose caches wait to be fetched, by the engine that computed them."""


class Simulated:
    """Keeps `penstock.kv.base.Connector`."""

    name = "SimulatedConnector"
    tells_adapters_apart = True

    def __init__(self, config: dict[str, Any], where: str) -> None:
        check_config(config, where)
        self._config = config

    def ports(self, site: Site) -> dict[str, int]:
        """None: it is all in one process."""
        return {}

    def setup(self, site: Site, engine: str) -> Setup:
        """An engine id, and nothing else."""
        config = completed(self._config, site)
        return Setup(
            config=config,
            identity=Identity(connector=self.name, engine=engine, engine_id=config["engine_id"]),
        )

    def request_params(self) -> dict[str, Any]:
        """As for NIXL."""
        return {"do_remote_decode": True, "do_remote_prefill": False}

    def misses(self, params: Mapping[str, Any] | None, sender: Identity) -> str:
        """The cache's address."""
        told = (params or {}).get("remote_engine_id")
        return (
            ""
            if told == sender.engine_id
            else f"it comes from '{sender.engine_id}' and points to '{told}'"
        )
