"""What the SGLang worker is told: what to load, then what every worker is told."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

from penstock.engines.process import Abort, Call, Submit


class Load(Struct, tag="load", array_like=True):
    """First message: what to load. `model` is a directory or a hub id, `arguments` are SGLang's."""

    model: str
    arguments: dict[str, Any]


ToWorker = Load | Submit | Abort | Call

decode_to_worker = msgspec.msgpack.Decoder(ToWorker).decode
