"""What the parent and the OpenVINO worker say to each other, as msgpack of tagged structures."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

from penstock.engines.openvino.options import OpenVINOOptions
from penstock.types import Delta, Sampling


class Load(Struct, tag="load", array_like=True):
    """First message: what to load. `path` is an IR directory or a GGUF file, `context_length` the model's in tokens."""

    path: str
    task: str
    context_length: int
    options: OpenVINOOptions


class Submit(Struct, tag="submit", array_like=True):
    """A prompt to continue: text or token ids."""

    id: int
    prompt: str | list[int]
    sampling: Sampling
    adapter: str | None
    stream: bool
    special_tokens: bool


class Abort(Struct, tag="abort", array_like=True):
    """Give a request up."""

    id: int


class Call(Struct, tag="call", array_like=True):
    """Call a method of the worker; answered by `Reply` or `Failed` under the same id."""

    id: int
    method: str
    args: list[Any]


class Ready(Struct, tag="ready", array_like=True):
    """The model is loaded."""

    tasks: list[str]
    context_length: int
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


ToWorker = Load | Submit | Abort | Call
ToParent = Ready | Step | Reply | Failed

_encoder = msgspec.msgpack.Encoder()
encode = _encoder.encode
decode_to_worker = msgspec.msgpack.Decoder(ToWorker).decode
decode_to_parent = msgspec.msgpack.Decoder(ToParent).decode
