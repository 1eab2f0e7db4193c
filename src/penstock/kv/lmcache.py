"""LMCache's connector: LMCache keeps caches in tiers of memory and storage."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata
from importlib.util import find_spec
from typing import Any

from penstock.errors import MissingExtraError
from penstock.kv.base import Identity, Setup, Site
from penstock.kv.vllm_config import check_config, complete_config

_PORT = "lmcache_rpc_port"


class LMCache:
    """Implements `penstock.kv.base.Connector`. LMCache reads its own settings from `LMCACHE_*`
    variables or the file that `LMCACHE_CONFIG_FILE` names. They must be the same on both sides; the
    connector leaves them alone.
    """

    name = "LMCacheConnectorV1"
    tells_adapters_apart = True

    def __init__(self, config: dict[str, Any], where: str) -> None:
        check_config(config, where)
        self._config = config

    def ports(self, site: Site) -> dict[str, int]:
        """None: LMCache's own settings name its ports."""
        return {}

    def setup(self, site: Site, engine: str) -> Setup:
        """Give the engine a lookup channel of its own: under a shared name, replicas on one host
        would answer for each other.
        """
        if find_spec("lmcache") is None:
            raise MissingExtraError("lmcache", None, f"The {self.name}")
        config = complete_config(self._config, site)
        extra = config["kv_connector_extra_config"]
        extra[_PORT] = f"{extra.get(_PORT, 'penstock')}-{config['engine_id']}"
        identity = Identity(
            connector=self.name,
            engine=engine,
            library=f"lmcache {metadata.version('lmcache')}",
            engine_id=config["engine_id"],
        )
        return Setup(config=config, identity=identity)

    def request_params(self) -> None:
        """None: the prompt's tokens alone identify its cache."""

    def misses(self, params: Mapping[str, Any] | None, sender: Identity) -> str:
        """Nothing: the prompt's tokens find the cache, wherever LMCache has put it."""
        return ""
