"""The form of jobs that embed: each row's text becomes a vector."""

from __future__ import annotations

import struct
from array import array
from base64 import b64decode, b64encode
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from penstock.batch.rows.requests import (
    END_COLUMNS,
    FLAT_OBJECTS,
    ColumnRequests,
    check_task,
    end_of,
    end_types,
)
from penstock.batch.rows.row import Outcome, Row
from penstock.engines.base import LLMEngine
from penstock.errors import ContextLengthError, RequestError
from penstock.types import EmbeddingRequest, Embeddings

if TYPE_CHECKING:
    import pyarrow as pa

VECTOR_TYPES = ("float32", "float16", "int8")
_CODES = {"float32": "f", "float16": "e", "int8": "b"}
_CUTS = 24
_KEPT_EACH_CUT = 0.75  # so that a text may be a thousand times too long


class ColumnVectors(ColumnRequests):
    """Vectors of texts, in the column `embedding`.

    `vector_type` is the type of their numbers. For "int8", each vector is scaled so that its
    largest number is 127 or -127, which keeps cosines. `dimensions`, `input_type` and `truncate`
    are those of `types.EmbeddingRequest`; `options` are those of `ColumnRequests`.
    """

    kind = "embeddings"
    by_length = True

    def __init__(
        self,
        *,
        dimensions: int | None = None,
        input_type: Literal["query", "document"] | None = None,
        truncate: bool = False,
        vector_type: str = "float32",
        prefix: str = "",
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self._width = dimensions or 0
        self._type = vector_type
        self._asked = EmbeddingRequest([], dimensions, input_type=input_type, truncate=truncate)
        self._digest = blake2b(self._encode((self.kind, self._asked)), digest_size=16)
        self._name_columns(("embedding", *END_COLUMNS), FLAT_OBJECTS, prefix)

    def prepare(self, row: Row) -> None:
        super().prepare(row)
        text = row.request.messages[-1]["content"]
        row.request = msgspec.structs.replace(self._asked, inputs=[text])
        row.shareable = True

    def check_engine(self, engine: LLMEngine) -> None:
        check_task(engine, "embeddings", "makes no vectors", "an embedding model")

    async def ask(self, engine: LLMEngine, row: Row) -> Outcome:
        found, _ = await embedded(engine, row.request)
        vector = found.vectors[0]
        self._width = self._width or len(vector)
        if len(vector) != self._width:
            wanted = "dimensions asks for" if self._asked.dimensions else "others have"
            raise RequestError(f"the vector has {len(vector)} numbers; {wanted} {self._width}")
        packed = pack(vector, self._type)
        return Outcome(response=b64encode(packed).decode(), usage=found.usage)

    def results(self, outcome: Outcome) -> list[Any]:
        vector = None
        if outcome.error is None and outcome.response is not None:
            vector = unpack(b64decode(outcome.response), self._type)
            self._width = self._width or len(vector)
        return [vector, *end_of(outcome)]

    def arrow_types(self) -> list[pa.DataType]:
        import pyarrow as pa

        number = {"float32": pa.float32(), "float16": pa.float16(), "int8": pa.int8()}[self._type]
        # Without `dimensions` the width shows in the first vector.
        vector = pa.list_(number, self._width) if self._width else pa.null()
        return [vector, *end_types()]


async def embedded(
    engine: LLMEngine, request: EmbeddingRequest
) -> tuple[Embeddings, EmbeddingRequest]:
    """The vector of the request's one text, and the request that got it: if `truncate` is set and
    the engine cannot cut, the text is made shorter here until it fits. Raises what the engine
    raises.
    """
    cuts = _CUTS if request.truncate else 0
    while True:
        try:
            return await engine.embeddings(request), request
        except ContextLengthError:
            if not cuts:
                raise
        cuts -= 1
        text = request.inputs[0]
        request = msgspec.structs.replace(request, inputs=[text[: int(len(text) * _KEPT_EACH_CUT)]])


def pack(vector: list[float], vector_type: str) -> bytes:
    """A vector's numbers in this type, little-endian. Raises `RequestError` if it holds no such
    numbers.
    """
    try:
        if vector_type == "int8":
            largest = max(map(abs, vector), default=0.0) or 1.0
            return array("b", [round(127 * number / largest) for number in vector]).tobytes()
        return struct.pack(f"<{len(vector)}{_CODES[vector_type]}", *vector)
    except (OverflowError, ValueError):  # infinite, no number, or too large for the type
        raise RequestError(f"the vector has numbers that {vector_type} does not hold") from None


def unpack(packed: bytes, vector_type: str) -> list[Any]:
    """The numbers that `pack` was given, as far as the type holds them."""
    code = _CODES[vector_type]
    return list(struct.unpack(f"<{len(packed) // struct.calcsize(code)}{code}", packed))
