"""vLLM's example connector: caches as files in a folder that all engines reach, found by the
prompt's tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from penstock.errors import ConfigError
from penstock.kv.base import Identity, Setup, Site
from penstock.kv.vllm_config import check_config, completed


class SharedStorage:
    """Keeps `penstock.kv.base.Connector`. For tests and small set-ups: nothing deletes the
    files.
    """

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
        self._config = {**config, "kv_connector": self.name}  # it was SharedStorageConnector once

    def ports(self, site: Site) -> dict[str, int]:
        """None: files need none."""
        return {}

    def setup(self, site: Site, engine: str) -> Setup:
        """Each engine writes and reads, whatever its role."""
        config = completed({"kv_role": "kv_both", **self._config}, site)
        return Setup(
            config=config,
            identity=Identity(connector=self.name, engine=engine, engine_id=config["engine_id"]),
        )

    def request_params(self) -> None:
        """A prompt's tokens are all that finds its cache."""

    def misses(self, params: Mapping[str, Any] | None, sender: Identity) -> str:
        """Nothing: there is no peer to find."""
        return ""
