"""Ports for engines on one host, without clashes between processes that choose at the same time."""

from __future__ import annotations

import socket

from penstock.errors import EngineStartError

MOST_TRIED = 2000
"""Ports that are looked at from the first on."""
_LEASES = "\0penstock-port-"
"""What the names of leased ports begin with, the same in all processes of the host."""


class PortLease:
    """`count` successive ports from `port` on. They are kept from others who lease until `release`,
    or until the process ends.
    """

    def __init__(self, port: int, held: list[socket.socket]) -> None:
        self.port = port
        self._held = held

    def release(self) -> None:
        """Give them back. Harmless when repeated."""
        for one in self._held:
            one.close()
        self._held.clear()


def lease_ports(first: int, count: int = 1, host: str = "127.0.0.1") -> PortLease:
    """The first `count` successive ports, from `first` on, that nobody listens at on `host` and
    nobody has leased.

    Whoever leases a port binds it later, in another process, so being free now is not enough: a
    lease is a name in the host's abstract sockets, which has one owner, and leaves nothing behind.
    Raises `EngineStartError` if none is free.
    """
    last = min(first + MOST_TRIED, 65536)
    port = first
    while port + count <= last:
        held: list[socket.socket] = []
        for number in range(port, port + count):
            name = _reserved(number) if _free(host, number) else None
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


def _reserved(port: int) -> socket.socket | None:
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
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as those who will bind it do
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True
