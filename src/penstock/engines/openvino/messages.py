"""What the OpenVINO worker is told: what to load, then what every worker is told."""

from __future__ import annotations

import msgspec
from msgspec import Struct

from penstock.engines.messages import Abort, Call, Submit
from penstock.engines.openvino.options import OpenVINOOptions


class Load(Struct, tag="load", array_like=True):
    """First message: what to load. `path` is an IR directory or a GGUF file, `context_length` the model's in tokens."""

    path: str
    task: str
    context_length: int
    options: OpenVINOOptions


ToWorker = Load | Submit | Abort | Call

decode_to_worker = msgspec.msgpack.Decoder(ToWorker).decode
