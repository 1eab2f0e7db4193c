"""The forms of jobs that embed, speak or hear: each row's text, with its images, becomes a vector,
its text a recording, or its recording a text.
"""

from __future__ import annotations

import asyncio
import os
import struct
from base64 import b64decode
from collections.abc import AsyncIterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from penstock.batch.read.sources import check_column
from penstock.batch.rows.repair import CUTS, cut, shortened
from penstock.batch.rows.requests import (
    END_COLUMNS,
    FLAT_OBJECTS,
    ColumnRequests,
    check_task,
    end_of,
    end_types,
)
from penstock.batch.rows.row import Outcome, Row
from penstock.batch.stages.media import Loader, loaded
from penstock.engines.base import LLMEngine
from penstock.engines.media.audio import audio_file
from penstock.engines.sampling import check_vectors
from penstock.errors import ContextLengthError, PenstockError, RequestError
from penstock.types import (
    ChatRequest,
    EmbeddingRequest,
    Embeddings,
    SpeechRequest,
    TranscriptionRequest,
)

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

VECTOR_KINDS = ("dense", "multi", "sparse")
VECTOR_TYPES = ("float32", "float16", "int8")
FLOAT_BYTES = 4
_TYPES = {"float32": "<f4", "float16": "<f2", "int8": "<i1"}


class ColumnVectors(ColumnRequests):
    """Vectors of texts, or of images and texts, in the column `embedding`.

    `vector_type` is the type of their numbers. For "int8", each vector is scaled so that its
    largest number is 127 or -127, which keeps cosines. `dimensions`, `input_type`, `truncate` and
    `vectors` are those of `types.EmbeddingRequest`; `options` are those of `ColumnRequests`. The
    column holds a vector, for "multi" a list of them, for "sparse" `indices` and `values`.
    """

    kind = "embeddings"
    job_params = ("dimensions",)
    by_length = True

    def __init__(
        self,
        *,
        dimensions: int | None = None,
        input_type: Literal["query", "document"] | None = None,
        truncate: bool = False,
        vector_type: str = "float32",
        vectors: Literal["dense", "multi", "sparse"] = "dense",
        prefix: str = "",
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self._width = dimensions or 0
        self._type = vector_type
        self._kind = vectors
        asked = EmbeddingRequest(
            [], dimensions, input_type=input_type, truncate=truncate, vectors=vectors
        )
        # Without `packed`, which changes no answer: requests keep the digests that they had before.
        self._digest = blake2b(self._encode((self.kind, asked)), digest_size=16)
        self._asked = msgspec.structs.replace(asked, packed=vectors == "dense")
        self._name_columns(("embedding", *END_COLUMNS), FLAT_OBJECTS, prefix)

    def prepare(self, row: Row) -> None:
        super().prepare(row)
        (message,) = row.request.messages
        given: Any = message["content"]
        if isinstance(given, list):  # images, and behind them the text
            parts = given if given[-1]["text"] else given[:-1]
            given = ChatRequest([{"role": "user", "content": parts}])
        elif self._image is not None and not given:
            raise RequestError(
                f"the row has no image in '{self._image}', and no text", param=self._image
            )
        row.request = msgspec.structs.replace(self._asked, inputs=[given])
        row.shareable = True

    def check_engine(self, engine: LLMEngine) -> None:
        check_task(engine, "embeddings", "makes no vectors", "an embedding model")
        check_vectors(self._kind, engine.capabilities, engine.name)
        self.check_sees(engine)

    async def ask(self, engine: LLMEngine, row: Row) -> Outcome:
        found, _ = await embedded(engine, row.request)
        if found.packed:
            vectors = [found.packed]
        else:
            (made,) = found.of(self._kind)
            one = made.values if self._kind == "sparse" else made
            vectors = [floats(vector) for vector in (made if self._kind == "multi" else [one])]
        packed = b"".join(packed_as(self._type, vector) for vector in vectors)
        if self._kind == "sparse":
            empty = None if packed else ""
            return Outcome(empty, usage=found.usage, parsed=made.indices, packed=packed)
        if not packed:
            raise RequestError("the vector has no numbers")
        for vector in vectors:
            width = len(vector) // FLOAT_BYTES
            self._width = self._width or width
            if width != self._width:
                param = "dimensions" if self._asked.dimensions else None
                wanted = f"{param} asks for" if param else "others have"
                why = f"the vector has {width} numbers; {wanted} {self._width}"
                raise RequestError(why, param=param)
        several = len(vectors) if self._kind == "multi" else None
        return Outcome(packed=packed, usage=found.usage, parsed=several)

    def results(self, outcome: Outcome) -> list[Any]:
        value: Any = None
        if outcome.error is None and (outcome.packed or outcome.response is not None):
            packed = outcome.packed or b64decode(outcome.response or "")
            value = unpack(packed, self._type)
            if self._kind == "sparse":
                value = {"indices": outcome.parsed, "values": value.tolist()}
            else:
                count = outcome.parsed if self._kind == "multi" else 1
                width = len(value) // count
                self._width = self._width or width
                if self._kind == "multi":
                    value = value.reshape(count, width).tolist()
        return [value, *end_of(outcome)]

    def output(self, row: Row, outcome: Outcome) -> dict[str, Any]:
        values = super().output(row, outcome)
        name = self.result_columns[0]
        if hasattr(values[name], "tolist"):  # tables take arrays in a tenth of the time
            values[name] = values[name].tolist()
        return values

    def arrow_types(self) -> list[pa.DataType]:
        import pyarrow as pa

        number = {"float32": pa.float32(), "float16": pa.float16(), "int8": pa.int8()}[self._type]
        if self._kind == "sparse":
            lists = {"indices": pa.list_(pa.int32()), "values": pa.list_(number)}
            return [pa.struct(lists), *end_types()]
        # Without `dimensions` the width shows in the first vector.
        vector = pa.list_(number, self._width) if self._width else pa.null()
        several = self._kind == "multi" and self._width
        return [pa.list_(vector) if several else vector, *end_types()]


async def embedded(
    engine: LLMEngine, request: EmbeddingRequest
) -> tuple[Embeddings, EmbeddingRequest]:
    """The vector of the request's one input, and the request that got it: if `truncate` is set and
    the engine cannot cut, its text is made shorter here until it fits. Raises what the engine
    raises.
    """
    cuts = CUTS if request.truncate else 0
    while True:
        try:
            return await engine.embeddings(request), request
        except ContextLengthError:
            (given,) = request.inputs
            shorter = shortened(given) if isinstance(given, ChatRequest) else cut(given)
            if not cuts or shorter is given:
                raise
        cuts -= 1
        request = msgspec.structs.replace(request, inputs=[shorter])


def floats(vector: Sequence[float]) -> bytes:
    """A vector's numbers as `Embeddings.packed` has them. Raises `RequestError` for one that is
    too large.
    """
    try:
        return struct.pack(f"<{len(vector)}f", *vector)
    except OverflowError:
        raise RequestError("the vector has numbers that float32 does not hold") from None


def packed_as(vector_type: str, packed: bytes) -> bytes:
    """A vector's 32-bit floats in this type. Raises `RequestError` if it does not hold them."""
    if vector_type == "float32":
        return packed
    import numpy as np

    numbers = np.frombuffer(packed, "<f4")
    with np.errstate(all="ignore"):
        if vector_type == "int8":
            largest = np.abs(numbers).max(initial=0) or 1.0
            made = np.rint(127 * (numbers.astype(np.float64) / largest))
            lost = ~np.isfinite(made)
        else:
            made = numbers.astype("<f2")
            lost = np.isfinite(numbers) & ~np.isfinite(made)
    if lost.any():
        raise RequestError(f"the vector has numbers that {vector_type} does not hold")
    typed: NDArray[Any] = made.astype(_TYPES[vector_type])
    return typed.tobytes()


def unpack(packed: bytes, vector_type: str) -> NDArray[Any]:
    """The numbers that `packed_as` gave."""
    import numpy as np

    return np.frombuffer(packed, _TYPES[vector_type])


class ColumnTranscripts(ColumnRequests):
    """What is said in recordings, in the columns `response`, `language` and `duration` (seconds);
    with `asked.timestamps` also `segments`.

    A value of the column `audio` is bytes, a path, a URL, a data URI, or a mapping with `bytes` or
    `path` (as data sets of Hugging Face have it). `asked` is the request without a recording;
    `options` are those of `ColumnRequests`. Rows with equal recordings share an answer.
    """

    kind = "transcripts"
    job_params = ("language",)

    def __init__(
        self, *, audio: str, asked: TranscriptionRequest, prefix: str = "", **options: Any
    ) -> None:
        super().__init__(messages=audio, **options)
        self._images = None
        self._audio, self._asked = audio, asked
        self._loader: Loader | None = None
        self._digest = blake2b(self._encode((self.kind, asked)), digest_size=16)
        timed = ("segments",) if asked.timestamps else ()
        self._name_columns(
            ("response", "language", "duration", *timed, *END_COLUMNS), FLAT_OBJECTS, prefix
        )

    def check(
        self, columns: Sequence[str], every: Sequence[str] | None, *, flat: bool = False
    ) -> None:
        check_column(self._audio, every, "audio")
        super().check(columns, every, flat=flat)

    async def ready(self, rows: list[Row]) -> AsyncIterator[list[Row]]:
        self._loader = self._loader or Loader()
        async for some in loaded(rows, self._load):
            yield self._stored(some)

    async def _load(self, row: Row) -> int:
        value = (row.sound or {}).get(self._audio)
        if value is None or row.failure is not None:
            return 0
        assert self._loader is not None
        try:
            row.request = await self._loader.load(value, self._audio)
        except PenstockError as error:
            row.failure = error
        return len(row.request or b"")

    def prepare(self, row: Row) -> None:
        if row.request is None:
            raise RequestError(f"the row has no recording in '{self._audio}'", param=self._audio)
        digest = self._digest.copy()
        digest.update(row.request)
        row.digest = digest.digest()
        row.request = msgspec.structs.replace(self._asked, audio=row.request)
        row.shareable = True

    def close(self) -> None:
        if self._loader is not None:
            self._loader.close()

    def check_engine(self, engine: LLMEngine) -> None:
        check_task(engine, "transcriptions", "hears no recordings", "a speech-to-text model")

    async def ask(self, engine: LLMEngine, row: Row) -> Outcome:
        found = await engine.transcriptions(row.request)
        told = [found.language, found.duration]
        if self._asked.timestamps:
            told.append(msgspec.to_builtins(found.segments))
        return Outcome(response=found.text, usage=found.usage, parsed=told)

    def results(self, outcome: Outcome) -> list[Any]:
        blank = [None] * (3 if self._asked.timestamps else 2)
        return [outcome.response, *(outcome.parsed or blank), *end_of(outcome)]

    def arrow_types(self) -> list[pa.DataType]:
        import pyarrow as pa

        segment = pa.struct({"start": pa.float64(), "end": pa.float64(), "text": pa.string()})
        timed = [pa.list_(segment)] if self._asked.timestamps else []
        return [pa.string(), pa.string(), pa.float64(), *timed, *end_types()]


class ColumnSpeech(ColumnRequests):
    """Spoken texts, as files of the form `audio_format` in `folder`. The column `audio` has the
    path of each, `duration` its length in seconds.

    A file is named by its request and the model, so that rows with equal texts share one, and a job
    that is resumed writes none twice. `options` are those of `ColumnRequests`.
    """

    kind = "speech"
    job_params = ("voice",)

    def __init__(
        self,
        *,
        folder: Path,
        audio_format: str,
        voice: str | None,
        prefix: str = "",
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self._folder, self._format = folder, audio_format
        self._asked = SpeechRequest("", voice)
        self._digest = blake2b(self._encode((self.kind, self._asked)), digest_size=16)
        self._name_columns(("audio", "duration", *END_COLUMNS), FLAT_OBJECTS, prefix)

    def prepare(self, row: Row) -> None:
        super().prepare(row)
        text = row.request.messages[-1]["content"]
        row.request = msgspec.structs.replace(self._asked, text=text)
        row.shareable = True

    def check_engine(self, engine: LLMEngine) -> None:
        check_task(engine, "speech", "speaks no texts", "a text-to-speech model")

    async def ask(self, engine: LLMEngine, row: Row) -> Outcome:
        if not row.request.text.strip():
            raise RequestError("there is no text to speak", param="speak")
        spoken = await engine.speech(row.request)
        model = engine.model_source.encode(errors="surrogateescape")
        name = blake2b(row.digest + model, digest_size=16).hexdigest()
        file = self._folder / f"{name}.{self._format}"

        def write() -> None:
            self._folder.mkdir(parents=True, exist_ok=True)
            partial = file.with_name(f".{file.name}.partial")
            partial.write_bytes(audio_file(spoken, self._format))
            os.replace(partial, file)

        await asyncio.to_thread(write)
        return Outcome(response=str(file), usage=spoken.usage, parsed=[spoken.seconds])

    def results(self, outcome: Outcome) -> list[Any]:
        return [outcome.response, *(outcome.parsed or [None]), *end_of(outcome)]

    def arrow_types(self) -> list[pa.DataType]:
        import pyarrow as pa

        return [pa.string(), pa.float64(), *end_types()]
