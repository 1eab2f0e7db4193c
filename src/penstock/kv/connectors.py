"""The connectors: what each does with a user's `kv_transfer_config`. Most are vLLM's."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib import metadata
from importlib.util import find_spec
from typing import Any

from penstock.errors import ConfigError, MissingExtraError
from penstock.kv import nixl
from penstock.kv.base import EXTRA, Connector, Identity, Setup, Site, lease_ports, make_connector

PORTS = "NIXL_SIDE_CHANNEL_PORT_BASE"
PORT_BASE, DECODE_PORT_BASE = 20000, 22000
_LOOPBACK = {"UCX_TLS": "tcp,self", "UCX_NET_DEVICES": "lo"}
_ADDRESS = ("remote_engine_id", "remote_request_id", "remote_host", "remote_port")
_LOOKUP_PORT = "lmcache_rpc_port"


class SharedStorage(Connector):
    """vLLM's example connector: caches as files in a folder that all engines reach. For tests:
    nothing deletes the files.
    """

    tells_adapters_apart = False

    def __init__(self, config: dict[str, Any], where: str) -> None:
        # Once named SharedStorageConnector. It writes and reads, whatever the engine's role.
        super().__init__(
            {"kv_role": "kv_both", **config, "kv_connector": "ExampleConnector"}, where
        )
        path = (config.get(EXTRA) or {}).get("shared_storage_path")
        if not isinstance(path, str) or not path.startswith("/"):
            raise ConfigError(
                "must be the absolute path of a folder that prefill and decode both reach",
                field=f"{where}.{EXTRA}.shared_storage_path",
                value=path,
            )


class LMCache(Connector):
    """LMCache keeps caches in tiers of memory and storage. It reads its own settings from
    `LMCACHE_*` variables or the file that `LMCACHE_CONFIG_FILE` names. They must be the same on
    both sides; the connector leaves them alone.
    """

    def setup(self, site: Site, engine: str) -> Setup:
        """Give the engine a lookup channel of its own: under a shared name, replicas on one host
        would answer for each other.
        """
        if find_spec("lmcache") is None:
            raise MissingExtraError("lmcache", None, f"The {self.name}")
        setup = self._complete(site, engine, f"lmcache {metadata.version('lmcache')}")
        extra = setup.config[EXTRA]
        extra[_LOOKUP_PORT] = f"{extra.get(_LOOKUP_PORT, 'penstock')}-{setup.identity.engine_id}"
        return setup


class Simulated(Connector):
    """The simulated engines' connector: caches move between engines of one process as counts."""

    def request_params(self) -> dict[str, Any]:
        """Ask the prefill engine to compute the prompt, keep its cache, and name its address."""
        return {"do_remote_decode": True, "do_remote_prefill": False}

    def misses(self, params: Mapping[str, Any] | None, sender: Identity) -> str:
        """Check that the address is the sender's own."""
        own, peer = sender.engine_id, str((params or {}).get("remote_engine_id"))
        if peer == own or peer.startswith(f"{own}_dp"):  # vLLM's ranks append their number
            return ""
        return f"it comes from '{own}' and points to '{peer}'"


class Nixl(Simulated):
    """vLLM's NIXL connector: the decode engine reads the cache out of the prefill engine's memory.

    Each engine has a side channel of its own, where peers ask for the address of its memory. A
    prefill engine's hand-over names that channel.
    """

    def ports(self, site: Site) -> dict[str, int]:
        """The side channel's port; the two sides of a model have ranges of their own."""
        default = DECODE_PORT_BASE if site.role == "decode" else PORT_BASE
        base: Any = site.port_bases.get(PORTS, default)
        if isinstance(base, bool) or not isinstance(base, int) or not 1024 <= base <= 65535:
            raise ConfigError(
                "must be a port from 1024 to 65535",
                field=f"experimental_configs.{PORTS}",
                value=base,
            )
        return {PORTS: base}

    def setup(self, site: Site, engine: str) -> Setup:
        """Lease ports for the side channel, one a rank."""
        nixl.require_nixl(f"The {self.name}")
        lease = lease_ports(self.ports(site)[PORTS], site.ranks, site.host)
        setup = self._complete(site, engine, f"{nixl.package_name()} {nixl.version()}")
        setup.leases = [lease]
        setup.environment = {
            "VLLM_NIXL_SIDE_CHANNEL_HOST": site.host,
            "VLLM_NIXL_SIDE_CHANNEL_PORT": str(lease.port),
        }
        is_loopback = site.host.startswith("127.") or site.host in ("::1", "localhost")
        if is_loopback and site.cpu:  # UCX would listen on every network of the machine
            setup.environment |= {
                name: value for name, value in _LOOPBACK.items() if name not in os.environ
            }
        return setup

    def misses(self, params: Mapping[str, Any] | None, sender: Identity) -> str:
        """Check that the address is complete, and that it is the sender's own."""
        for name in _ADDRESS:
            if not (params or {}).get(name):
                return f"it has no {name}"
        return super().misses(params, sender)


class Multi(Connector):
    """Several connectors for one engine: it writes to all, and reads from the first with the
    cache. The first alone takes part in hand-overs, so the others may be any that the engine has.
    """

    def __init__(self, config: dict[str, Any], where: str) -> None:
        super().__init__(config, where)
        where = f"{where}.{EXTRA}.connectors"
        given = (config.get(EXTRA) or {}).get("connectors")
        if not isinstance(given, (list, tuple)) or not given:
            raise ConfigError("must be a list of at least one connector", field=where, value=given)
        self._parts = [
            make_connector(part, f"{where}[{n}]", alone=n == 0) for n, part in enumerate(given)
        ]
        for number, part in enumerate(self._parts):
            if part.name == self.name:
                raise ConfigError(
                    "a MultiConnector cannot hold another one", field=f"{where}[{number}]"
                )
        self.tells_adapters_apart = all(part.tells_adapters_apart for part in self._parts)

    def ports(self, site: Site) -> dict[str, int]:
        return {name: base for part in self._parts for name, base in part.ports(site).items()}

    def setup(self, site: Site, engine: str) -> Setup:
        """Set up each connector under one engine id. Raises `ConfigError` if two of them want
        different values for one variable.
        """
        parts: list[Setup] = []
        environment: dict[str, str] = {}
        try:
            for connector in self._parts:
                parts.append(connector.setup(site, engine))
                for name, value in parts[-1].environment.items():
                    if environment.setdefault(name, value) != value:
                        raise ConfigError(
                            f"two connectors want {name} to be different", field=EXTRA, value=value
                        )
        except BaseException:
            for part in parts:
                part.release()
            raise
        libraries = ", ".join(filter(None, (part.identity.library for part in parts)))
        setup = self._complete(site, engine, libraries)
        # vLLM gives each connector the id of all, and fails for a connector that has an id already.
        setup.config[EXTRA]["connectors"] = [
            {key: value for key, value in part.config.items() if key != "engine_id"}
            for part in parts
        ]
        setup.environment = environment
        setup.leases = [lease for part in parts for lease in part.leases]
        return setup

    def request_params(self) -> dict[str, Any] | None:
        return self._parts[0].request_params()

    def misses(self, params: Mapping[str, Any] | None, sender: Identity) -> str:
        return self._parts[0].misses(params, sender)
