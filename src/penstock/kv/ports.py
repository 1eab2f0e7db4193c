"""Ports for engines on one host, without clashes between processes that choose at the same time."""

from __future__ import annotations

import socket

from penstock.errors import EngineStartError

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
