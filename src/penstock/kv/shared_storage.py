"""vLLM's example connector: caches as files in a folder that all engines reach. The prompt's tokens
identify a file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from penstock.errors import ConfigError
from penstock.kv.base import Identity, Setup, Site
from penstock.kv.vllm_config import check_config, complete_config


class SharedStorage:
    """Implements `penstock.kv.base.Connector`, for tests: nothing deletes the files."""

    name = "ExampleConnector"
    tells_adapters_apart = False

    def __init__(self, config: dict[str, Any], where: str) -> None:
        check_config(config, where)
        path = (config.get("kv_connector_extra_config") or {}).get("shared_storage_path")
        if not isinstance(path, str) or not path.startswith("/"):
            raise ConfigError(
                "must be the absolute path of a folder that prefill and decode both reach",
                field=f"{where}.kv_connector_extra_config.shared_storage_path",
                value=path,
            )
        self._config = {**config, "kv_connector": self.name}  # once named SharedStorageConnector

    def ports(self, site: Site) -> dict[str, int]:
        """None: files need no port."""
        return {}

    def setup(self, site: Site, engine: str) -> Setup:
        """Let the engine write and read, whatever its role."""
        config = complete_config({"kv_role": "kv_both", **self._config}, site)
        return Setup(
            config=config,
            identity=Identity(connector=self.name, engine=engine, engine_id=config["engine_id"]),
        )

    def request_params(self) -> None:
        """None: the prompt's tokens alone identify its cache."""

    def misses(self, params: Mapping[str, Any] | None, sender: Identity) -> str:
        """Nothing: a hand-over has no peer to find."""
        return ""
