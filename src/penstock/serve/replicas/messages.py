"""What an ingress and a replica say beside clients' own requests: calls of the model by programs,
and what the engine has cached. All of it is msgpack.

A call is a `CALL` frame and its request as a body. The head of the answer has a status, as in HTTP.
Each part is one message: of a generating task the deltas of a step, or the `Failure` that ended
them; of any other task its result. With another status than 200 it is OpenAI's JSON of the error.

The router's names of a prompt's blocks go with a request. `GET /penstock/cached` is a stream of
length-prefixed lists of changes: which of these names are cached now, and which no more.
"""

from __future__ import annotations

import struct
from base64 import b64decode, b64encode
from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import Struct

from penstock.errors import PenstockError, by_kind
from penstock.kv.cached_blocks import Change
from penstock.types import Delta

CACHED_PATH = "/penstock/cached"
BLOCKS_HEADER = "x-penstock-blocks"
pack = msgspec.msgpack.Encoder().encode
_LENGTH = 4


class Call(Struct, frozen=True, array_like=True):
    """The head of a call. `blocks` are the router's names of the prompt's blocks. `whole` asks for
    one delta an answer, at the end. `length` is that of the request in bytes.
    """

    key: str
    task: str
    length: int
    request_id: str = ""
    blocks: Sequence[int] = ()
    whole: bool = False


class Failure(Struct, frozen=True):
    """The error that ended a stream of deltas."""

    kind: str
    message: str
    param: str | None = None


_unpack_part = msgspec.msgpack.Decoder(list[Delta] | Failure).decode
_unpack_changes = msgspec.msgpack.Decoder(list[Change]).decode


def deltas_of(parts: list[bytes]) -> tuple[list[Delta], PenstockError | None]:
    """The deltas of an answer's parts, and the error behind them if there is one."""
    deltas: list[Delta] = []
    for part in parts:
        message = _unpack_part(part)
        if isinstance(message, Failure):
            return deltas, by_kind(message.kind, message.message, message.param)
        deltas += message
    return deltas, None


def framed(message: Any) -> bytes:
    """A message with its length before it."""
    data = pack(message)
    return len(data).to_bytes(_LENGTH, "big") + data


# Caches
def header_of(names: Sequence[int]) -> str:
    """Names of 64 bits as a header's value."""
    return b64encode(struct.pack(f"<{len(names)}Q", *names)).decode()


def names_of(header: str) -> tuple[int, ...]:
    """The names that a header brings; none where it is no such header."""
    try:
        data = b64decode(header, validate=True)
        return struct.unpack(f"<{len(data) // 8}Q", data)
    except (ValueError, struct.error):
        return ()


class ChangeReader:
    """Reads changes from bytes that come in any pieces."""

    def __init__(self) -> None:
        self._rest = b""

    def changes_of(self, data: bytes) -> list[Change]:
        """The messages that are complete now."""
        data = self._rest + data
        at = 0
        found: list[Change] = []
        while len(data) - at >= _LENGTH:
            end = at + _LENGTH + int.from_bytes(data[at : at + _LENGTH], "big")
            if end > len(data):
                break
            found += _unpack_changes(data[at + _LENGTH : end])
            at = end
        self._rest = data[at:]
        return found
