"""Calls of a replica's server by a program, in the neutral types: msgpack, without OpenAI's JSON on
the way.

A call is `POST /penstock/call/TASK` with the task's request. A generating task answers with frames,
each four bytes of length and a message: deltas, or the error that ended them. The other tasks
answer with their result.

Many calls in one are in `grouped_calls`.
"""

from __future__ import annotations

from typing import Any

import msgspec

from penstock.errors import PenstockError, by_kind
from penstock.types import Delta

PATH = "/penstock/call/"
pack = msgspec.msgpack.Encoder().encode
_LENGTH = 4


class CallError(msgspec.Struct, frozen=True, array_like=True, tag="error"):
    """The error that ended a stream of deltas."""

    kind: str
    message: str


class Step(msgspec.Struct, frozen=True, array_like=True, tag="delta"):
    """One delta on its way."""

    delta: Delta


_decoder = msgspec.msgpack.Decoder(Step | CallError)


def framed(message: Any) -> bytes:
    """A message as a frame."""
    data = pack(message)
    return len(data).to_bytes(_LENGTH, "big") + data


def frames(data: bytes) -> tuple[list[bytes], bytes]:
    """The messages of the frames that are complete, and the bytes behind them."""
    at = 0
    found = []
    while len(data) - at >= _LENGTH:
        end = at + _LENGTH + int.from_bytes(data[at : at + _LENGTH], "big")
        if end > len(data):
            break
        found.append(data[at + _LENGTH : end])
        at = end
    return found, data[at:]


class CallFramer:
    """Writes deltas as frames. Keeps `penstock.openai.framing.Framer`."""

    def open(self) -> bytes:
        return b""

    def frame(self, delta: Delta) -> bytes:
        return framed(Step(delta))

    def close(self) -> bytes:
        return b""

    def error(self, error: PenstockError) -> bytes:
        return framed(CallError(error.kind, str(error)))


class FrameReader:
    """Reads frames from bytes that come in any pieces."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> tuple[list[Delta], PenstockError | None]:
        """The deltas that are complete now, and the error behind them if there is one."""
        complete, self._rest = frames(self._rest + data)
        deltas: list[Delta] = []
        for frame in complete:
            message = _decoder.decode(frame)
            if isinstance(message, CallError):
                return deltas, by_kind(message.kind, message.message)
            deltas.append(message.delta)
        return deltas, None
