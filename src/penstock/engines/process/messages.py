"""What an engine and its worker process say to each other, as msgpack of tagged structures.

The first message to a worker is its engine's own, and says what to load.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

from penstock.engines.base import Capabilities
from penstock.errors import RequestError
from penstock.types import Delta, Sampling


class Submit(Struct, tag="submit", array_like=True):
    """A prompt to continue: text or token ids."""

    id: int
    prompt: str | list[int]
    sampling: Sampling
    adapter: str | None
    stream: bool
    special_tokens: bool


class Abort(Struct, tag="abort", array_like=True):
    """Tells the worker to give a request up."""

    id: int


class Call(Struct, tag="call", array_like=True):
    """Call a method of the worker; answered by `Reply` or `Failed` under the same id."""

    id: int
    method: str
    args: list[Any]


class Ready(Struct, tag="ready", array_like=True):
    """The model is loaded. `special_tokens` are those that its chat template may name."""

    capabilities: Capabilities
    chat_template: str | None
    special_tokens: dict[str, str]


class Step(Struct, tag="step", array_like=True):
    """Everything that one turn of the worker's loop produced, by request id."""

    deltas: list[tuple[int, Delta]]


class Reply(Struct, tag="reply", array_like=True):
    """The result of a `Call`."""

    id: int
    value: Any


class Failed(Struct, tag="failed", array_like=True):
    """A request, a call, or (id 0) the loading failed. `kind` is a `PenstockError.kind`."""

    id: int
    kind: str
    message: str


ToParent = Ready | Step | Reply | Failed

encode = msgspec.msgpack.Encoder().encode
decode_to_parent = msgspec.msgpack.Decoder(ToParent).decode


def refusal_of(data: bytes | bytearray) -> Failed:
    """The answer to a message whose values have wrong types: the request is to blame, not the
    worker.
    """
    number: int = msgspec.msgpack.decode(data)[1]
    return Failed(
        number, RequestError.kind, "a value of the request has a wrong type, or is out of its range"
    )
