"""What replicas tell their ingresses of their KV caches: the names of a prompt's blocks go with a
request, and what has become of such names comes back on a stream of its own, as frames as in
`calls`, each a list of changes.
"""

from __future__ import annotations

import array
import sys
from base64 import b64decode, b64encode
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from penstock.errors import ClientGoneError, ShuttingDownError
from penstock.kv.cached_blocks import Change
from penstock.serve.api.exchange import Exchange
from penstock.serve.http.interrupt import Interrupt
from penstock.serve.replicas.calls import framed, frames

PATH = "/penstock/cached"
HEADER = "x-penstock-blocks"
_decode = msgspec.msgpack.Decoder(list[Change]).decode


def header_of(names: Sequence[int]) -> str:
    """Names of 64 bits as a header's value."""
    return b64encode(_as_bytes(array.array("Q", names))).decode()


def names_of(header: str) -> tuple[int, ...]:
    """The names that a header brings; none where it is no such header."""
    try:
        names = array.array("Q", b64decode(header, validate=True))
    except ValueError:
        return ()
    if sys.byteorder == "big":
        names.byteswap()
    return tuple(names)


def _as_bytes(names: array.array[int]) -> bytes:
    if sys.byteorder == "big":
        names.byteswap()
    return names.tobytes()


class ChangeReader:
    """Reads frames from bytes that come in any pieces."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[Change]:
        """The changes of the frames that are complete now."""
        complete, self._rest = frames(self._rest + data)
        return [change for frame in complete for change in _decode(frame)]


class ChangeStream(Response):
    """Sends changes until the client leaves or the server goes down."""

    def __init__(self, exchange: Exchange, changes: AsyncGenerator[list[Change], None]) -> None:
        self._exchange = exchange
        self._changes = changes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        ingress = self._exchange.ingress
        await send({"type": "http.response.start", "status": 200, "headers": []})
        # Nobody waits for the end of this one: it is the first thing to end when the server drains.
        try:
            async with (
                Interrupt(self._exchange.request.receive, ingress.watchers),
                aclosing(self._changes) as source,
            ):
                async for changes in source:
                    await send(
                        {"type": "http.response.body", "body": framed(changes), "more_body": True}
                    )
        except ClientGoneError:
            pass
        except ShuttingDownError:
            await send({"type": "http.response.body", "body": b"", "more_body": False})
