"""Several connectors for one engine: it writes to all, and reads from the first with the cache."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from penstock.errors import ConfigError
from penstock.kv.base import Connector, Identity, Setup, Site, make_connector
from penstock.kv.vllm_config import check_config, complete_config

_EXTRA = "kv_connector_extra_config"


class Multi:
    """Implements `penstock.kv.base.Connector`. The first of its connectors alone takes
    part in hand-overs.
    """

    name = "MultiConnector"

    def __init__(self, config: dict[str, Any], where: str) -> None:
        check_config(config, where)
        self._config = config
        where = f"{where}.{_EXTRA}.connectors"
        given = (config.get(_EXTRA) or {}).get("connectors")
        if not isinstance(given, (list, tuple)) or not given:
            raise ConfigError("must be a list of at least one connector", field=where, value=given)
        self._parts: list[Connector] = [
            make_connector(part, f"{where}[{n}]") for n, part in enumerate(given)
        ]
        for number, part in enumerate(self._parts):
            if part.name == self.name:
                raise ConfigError(
                    "a MultiConnector cannot hold another one", field=f"{where}[{number}]"
                )

    @property
    def tells_adapters_apart(self) -> bool:
        """Whether all of its connectors do."""
        return all(part.tells_adapters_apart for part in self._parts)

    def ports(self, site: Site) -> dict[str, int]:
        return {name: base for part in self._parts for name, base in part.ports(site).items()}

    def setup(self, site: Site, engine: str) -> Setup:
        """Set up each connector under one engine id. Raises `ConfigError` if two of them want
        different values for one variable.
        """
        setups: list[Setup] = []
        environment: dict[str, str] = {}
        try:
            for part in self._parts:
                made = part.setup(site, engine)
                setups.append(made)
                for name, value in made.environment.items():
                    if environment.setdefault(name, value) != value:
                        raise ConfigError(
                            f"two connectors want {name} to be different", field=_EXTRA, value=value
                        )
        except BaseException:
            for made in setups:
                made.release()
            raise
        config = complete_config(self._config, site)
        # vLLM gives each connector the id of all, and fails for a connector that has an id already.
        config[_EXTRA]["connectors"] = [
            {key: value for key, value in made.config.items() if key != "engine_id"}
            for made in setups
        ]
        identity = Identity(
            connector=self.name,
            engine=engine,
            library=", ".join(made.identity.library for made in setups if made.identity.library),
            engine_id=config["engine_id"],
        )
        leases = [lease for made in setups for lease in made.leases]
        return Setup(config=config, environment=environment, identity=identity, leases=leases)

    def request_params(self) -> dict[str, Any] | None:
        return self._parts[0].request_params()

    def misses(self, params: Mapping[str, Any] | None, sender: Identity) -> str:
        return self._parts[0].misses(params, sender)
