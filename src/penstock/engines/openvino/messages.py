"""What the OpenVINO worker is told: what to load, then what every worker is told."""

from __future__ import annotations

import msgspec
from msgspec import Struct

from penstock.engines.openvino.options import OpenVINOOptions
from penstock.engines.process import Abort, Call, Submit


class Load(Struct, tag="load", array_like=True):
    """First message: what to load. `path` is an IR directory or a GGUF file, `context_length` the
    model's in tokens.
    """

    path: str
    task: str
    context_length: int
    options: OpenVINOOptions


class LoadTokenizer(Struct, tag="load_tokenizer", array_like=True):
    """First message to a process that tries constraints: the directory or GGUF file of the
    tokenizer, and for each constraint the seconds of processor time and the bytes of memory it may
    take.
    """

    path: str
    seconds: float
    memory_bytes: int


ToWorker = Load | Submit | Abort | Call

decode_to_worker = msgspec.msgpack.Decoder(ToWorker).decode
decode_to_constraint_worker = msgspec.msgpack.Decoder(LoadTokenizer | Call).decode
