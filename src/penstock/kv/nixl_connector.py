"""vLLM's NIXL connector: the decode engine reads the cache out of the prefill engine's memory."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from penstock.kv import nixl
from penstock.kv.base import Identity, Setup, Site, port_base
from penstock.kv.ports import lease_ports
from penstock.kv.vllm_config import check_config, complete_config

PORTS = "NIXL_SIDE_CHANNEL_PORT_BASE"
PORT_BASE, DECODE_PORT_BASE = 20000, 22000
_LOOPBACK = {"UCX_TLS": "tcp,self", "UCX_NET_DEVICES": "lo"}
_ADDRESS = ("remote_engine_id", "remote_request_id", "remote_host", "remote_port")


class Nixl:
    """Implements `penstock.kv.base.Connector`. Each engine has a side channel of its own, where
    peers ask for the address of its memory. A prefill engine's hand-over names that channel.
    """

    tells_adapters_apart = True

    def __init__(self, config: dict[str, Any], where: str) -> None:
        check_config(config, where)
        self.name: str = config["kv_connector"]
        self._config = config

    def ports(self, site: Site) -> dict[str, int]:
        """The side channel's port; the two sides of a model have ranges of their own."""
        return {
            PORTS: port_base(site, PORTS, PORT_BASE if site.role != "decode" else DECODE_PORT_BASE)
        }

    def setup(self, site: Site, engine: str) -> Setup:
        """Lease ports for the side channel, one a rank."""
        nixl.require_nixl(f"The {self.name}")
        lease = lease_ports(self.ports(site)[PORTS], site.ranks, site.host)
        config = complete_config(self._config, site)
        environment = {
            "VLLM_NIXL_SIDE_CHANNEL_HOST": site.host,
            "VLLM_NIXL_SIDE_CHANNEL_PORT": str(lease.port),
        }
        if site.is_loopback and site.cpu:  # UCX would listen on every network of the machine
            environment |= {
                name: value for name, value in _LOOPBACK.items() if name not in os.environ
            }
        identity = Identity(
            connector=self.name,
            engine=engine,
            library=f"{nixl.package_name()} {nixl.version()}",
            engine_id=config["engine_id"],
        )
        return Setup(config=config, environment=environment, identity=identity, leases=[lease])

    def request_params(self) -> dict[str, Any]:
        """Ask the prefill engine to compute the prompt, keep its cache, and name its address."""
        return {"do_remote_decode": True, "do_remote_prefill": False}

    def misses(self, params: Mapping[str, Any] | None, sender: Identity) -> str:
        """Check that the address is complete, and that it is the sender's own."""
        params = params or {}
        for name in _ADDRESS:
            if not params.get(name):
                return f"it has no {name}"
        peer = str(params["remote_engine_id"])
        if peer.partition("_dp")[0] != sender.engine_id:
            return f"it comes from '{sender.engine_id}' and points to '{peer}'"
        return ""
