"""What KV connectors have in common, and their table.

A connector moves the KV cache of a prompt from the engine that computed it to the engine that
continues. Engines bring the machinery. A connector turns a user's `kv_transfer_config` into the
start options of one engine on one host, and checks whether a decode engine can use what a prefill
engine hands over.
"""

from __future__ import annotations

import socket
import uuid
from collections.abc import Mapping
from typing import Any, Literal

from msgspec import Struct, field

from penstock.config import unknown_key
from penstock.errors import ConfigError, EngineStartError, nearest

Role = Literal["prefill", "decode", "both"]
VLLM_ROLES: dict[Role, str] = {"prefill": "kv_producer", "decode": "kv_consumer", "both": "kv_both"}
FIELD = "engine_kwargs.kv_transfer_config"
EXTRA = "kv_connector_extra_config"
KNOWN = frozenset(
    (
        *("kv_connector", "kv_connector_extra_config", "kv_connector_module_path", "engine_id"),
        *("kv_role", "kv_rank", "kv_port", "kv_ip", "kv_buffer_device", "kv_buffer_size"),
        *("kv_parallel_size", "kv_load_failure_policy", "enable_permute_local_kv"),
    )
)
"""Keys of vLLM's `kv_transfer_config`."""


class Site(Struct, frozen=True, kw_only=True):
    """An engine's place. `host` is its address for engines of other replicas, `ranks` the number of
    its data-parallel ranks, `cpu` whether it computes on the CPU. `port_bases` maps names that Ray
    Serve LLM's users know (`NIXL_SIDE_CHANNEL_PORT_BASE`) to the first port of a range.
    """

    role: Role = "both"
    host: str = "127.0.0.1"
    ranks: int = 1
    cpu: bool = False
    port_bases: dict[str, int] = field(default_factory=dict)


class Identity(Struct, frozen=True, kw_only=True):
    """An engine's identity for its peers in KV transfers.

    `connector` is its name, `engine` the engine's name and version, `library` those of the transfer
    library, empty without one. `engine_id` is unique among all engines. `adapter` is set for a
    request with an adapter: its name and the digest of its content.
    """

    connector: str
    engine: str
    library: str = ""
    engine_id: str
    adapter: str = ""


class Setup(Struct, kw_only=True):
    """The start options of an engine: vLLM's `kv_transfer_config`, environment variables for its
    processes, its identity, and the ports that it leases while it runs.
    """

    config: dict[str, Any]
    environment: dict[str, str] = field(default_factory=dict)
    identity: Identity
    leases: list[PortLease] = field(default_factory=list)

    def release(self) -> None:
        """Release the ports after the engine has stopped."""
        for lease in self.leases:
            lease.release()


class Connector:
    """One connector, as a user configured it. `name` is that of its class in vLLM;
    `tells_adapters_apart`: caches of one prompt under different adapters stay separate.

    By default the prompt's tokens alone find a cache, so it needs no ports, and hand-overs name no
    peer. The constructor loads nothing. It raises `ConfigError` for what vLLM would refuse.
    """

    tells_adapters_apart = True

    def __init__(self, config: dict[str, Any], where: str) -> None:
        for key in config:
            if key not in KNOWN:
                raise unknown_key(key, KNOWN, field=where, value=config[key])
        role = config.get("kv_role")
        if role is not None and role not in VLLM_ROLES.values():
            raise ConfigError(
                f"unknown role '{role}'",
                field=f"{where}.kv_role",
                hint=nearest(role, VLLM_ROLES.values()),
            )
        extra = config.get(EXTRA)
        if extra is not None and not isinstance(extra, Mapping):
            raise ConfigError("must be a mapping", field=f"{where}.{EXTRA}", value=extra)
        self.name: str = config["kv_connector"]
        self._config = config

    def ports(self, site: Site) -> dict[str, int]:
        """The first port of the range from which each rank of an engine at `site` takes a free one,
        by its name in `port_bases`. Raises `ConfigError`.
        """
        return {}

    def setup(self, site: Site, engine: str) -> Setup:
        """Set up one more engine at `site`; `engine` is its name and version.

        Raises `MissingExtraError` or `EngineStartError` for an unavailable library, or without
        a free port.
        """
        return self._complete(site, engine)

    def request_params(self) -> dict[str, Any] | None:
        """The `kv_transfer_params` of a request to a prefill engine; None if it needs none."""
        return None

    def misses(self, params: Mapping[str, Any] | None, sender: Identity) -> str:
        """What a hand-over lacks, so that a decode engine cannot find the cache; empty: nothing."""
        return ""

    def _complete(self, site: Site, engine: str, library: str = "") -> Setup:
        """Complete the configuration for one engine: its role by default, a unique id, and a policy
        by which a missing cache is recomputed instead of failing the request.
        """
        given = self._config.get("engine_id")
        own = uuid.uuid4().hex[:16]
        engine_id = f"{given}-{own}" if given else own
        config = {
            "kv_role": VLLM_ROLES[site.role],
            "kv_load_failure_policy": "recompute",
            **self._config,
            EXTRA: dict(self._config.get(EXTRA) or {}),
            "engine_id": engine_id,
        }
        identity = Identity(
            connector=self.name, engine=engine, library=library, engine_id=engine_id
        )
        return Setup(config=config, identity=identity)


CONNECTORS = {
    "ExampleConnector": "SharedStorage",
    "LMCacheConnectorV1": "LMCache",
    "MultiConnector": "Multi",
    "NixlConnector": "Nixl",
    "NixlPullConnector": "Nixl",
    "SharedStorageConnector": "SharedStorage",
    "SimulatedConnector": "Simulated",
}
"""Names in vLLM, past ones too → classes of `connectors`; the last is the simulated engine's."""


NEED_A_PEER = frozenset({"MoRIIOConnector", "MooncakeConnector", "NixlPushConnector"})
"""Connectors of vLLM's that must know the other side before the prompt is computed."""


def make_connector(
    config: Mapping[str, Any], where: str = FIELD, *, alone: bool = True
) -> Connector:
    """The connector that a `kv_transfer_config` names; one that is not `alone` may be unknown here.
    Raises `ConfigError`.
    """
    if not isinstance(config, Mapping):
        raise ConfigError("must be a mapping", field=where, value=config)
    name = config.get("kv_connector")
    if name in NEED_A_PEER:
        raise ConfigError(
            f"{name} must know the decode side before the prompt is computed; nobody does here",
            field=f"{where}.kv_connector",
            value=name,
            hint="NixlConnector need not.",
        )
    if name not in CONNECTORS:
        if name and isinstance(name, str) and not alone:
            return Connector(dict(config), where)
        raise ConfigError(
            f"unknown connector {name!r}" if name else "a connector must be named",
            field=f"{where}.kv_connector",
            value=name,
            hint=nearest(str(name or ""), CONNECTORS),
        )
    from penstock.kv import connectors

    kind: type[Connector] = getattr(connectors, CONNECTORS[name])
    return kind(dict(config), where)


def configured_connector(engine_kwargs: Mapping[str, Any]) -> Connector | None:
    """The connector that `kv_transfer_config` names. None for a connector without transfers
    between engines, or with a protocol of its own: the engine gets its configuration
    unchanged. Raises `ConfigError`.
    """
    given = engine_kwargs.get("kv_transfer_config")
    if not isinstance(given, Mapping) or given.get("kv_connector") not in CONNECTORS:
        return None
    return make_connector(given)


def mismatch(own: Identity, sender: Identity) -> str:
    """Why an engine cannot use a cache from `sender`; empty if it can."""
    for what in ("connector", "engine", "library", "adapter"):
        ours, theirs = getattr(own, what), getattr(sender, what)
        if ours != theirs:
            return f"its {what} is {theirs or 'none'}, and ours {ours or 'none'}"
    if own.engine_id == sender.engine_id:
        return f"both engines are called '{own.engine_id}'"
    return ""


MOST_TRIED = 2000
"""How many ports from the first on are tried."""
_LEASES = "\0penstock-port-"
"""The prefix of a leased port's name, the same in all processes of the host."""


class PortLease:
    """`count` successive ports from `port` on. No other process can lease them until `release`, or
    until this process ends.
    """

    def __init__(self, port: int, held: list[socket.socket]) -> None:
        self.port = port
        self._held = held

    def release(self) -> None:
        """Give the ports back; idempotent."""
        for one in self._held:
            one.close()
        self._held.clear()


def lease_ports(first: int, count: int = 1, host: str = "127.0.0.1") -> PortLease:
    """Lease the first `count` successive ports, from `first` on, without a listener on `host` and
    without a lease.

    The engine binds its port later, in another process, so being free now is not enough. A lease is
    a name among the host's abstract sockets: it has one owner, and leaves nothing behind. Raises
    `EngineStartError` if no port is free.
    """
    last = min(first + MOST_TRIED, 65536)
    port = first
    while port + count <= last:
        held: list[socket.socket] = []
        for number in range(port, port + count):
            name = _reserve(number) if _free(host, number) else None
            if name is None:
                break
            held.append(name)
        if len(held) == count:
            return PortLease(port, held)
        port += len(held) + 1
        for one in held:
            one.close()
    raise EngineStartError(
        f"no {count} successive ports are free on {host} from {first} to {last - 1}"
    )


def _reserve(port: int) -> socket.socket | None:
    name = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        name.bind(f"{_LEASES}{port}")
    except OSError:
        name.close()
        return None
    return name


def _free(host: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as its later owner does
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True
