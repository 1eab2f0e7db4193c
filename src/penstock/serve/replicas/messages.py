"""What an ingress and a replica say beside clients' own requests: calls of the model by programs,
and what the engine has cached. All of it is msgpack.

A call is a `CALL` frame and its request as a body. The head of the answer has a status, as in HTTP.
Each part is one message: of a generating task the deltas of a step, or the `Failure` that ended
them; of any other task its result. With another status than 200 it is OpenAI's JSON of the error. A
peer of version 1 has no such frame: there a call is `POST /penstock/call/TASK`, and its answer
consists of length-prefixed messages, a delta each.

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

CALL_PATH, CACHED_PATH = "/penstock/call/", "/penstock/cached"
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


class MessageReader:
    """Reads length-prefixed messages from bytes that come in any pieces."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """The messages that are complete now."""
        data = self._rest + data
        at = 0
        found = []
        while len(data) - at >= _LENGTH:
            end = at + _LENGTH + int.from_bytes(data[at : at + _LENGTH], "big")
            if end > len(data):
                break
            found.append(data[at + _LENGTH : end])
            at = end
        self._rest = data[at:]
        return found


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


class ChangeReader(MessageReader):
    """Reads changes from bytes that come in any pieces."""

    def changes_of(self, data: bytes) -> list[Change]:
        """Those that are complete now."""
        return [change for message in self.feed(data) for change in _unpack_changes(message)]


# Calls of version 1
class CallError(Struct, frozen=True, array_like=True, tag="error"):
    """The error that ended a stream of deltas."""

    kind: str
    message: str


class Step(Struct, frozen=True, array_like=True, tag="delta"):
    """One delta on its way."""

    delta: Delta


_unpack_message = msgspec.msgpack.Decoder(Step | CallError).decode


class DeltaReader(MessageReader):
    """Reads an answer of version 1."""

    def deltas_of(self, parts: list[bytes]) -> tuple[list[Delta], PenstockError | None]:
        """As the function of that name."""
        deltas: list[Delta] = []
        for data in self.feed(b"".join(parts)):
            message = _unpack_message(data)
            if isinstance(message, CallError):
                return deltas, by_kind(message.kind, message.message)
            deltas.append(message.delta)
        return deltas, None


class CallFramer:
    """Writes an answer of version 1. Implements `penstock.openai.framing.Framer`."""

    def open(self) -> bytes:
        return b""

    def frame(self, delta: Delta) -> bytes:
        return framed(Step(delta))

    def close(self) -> bytes:
        return b""

    def error(self, error: PenstockError) -> bytes:
        return framed(CallError(error.kind, str(error)))
