"""The forms of jobs that embed, speak or hear."""

from hashlib import blake2b
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from penstock.batch.rows.requests import Template
from penstock.batch.rows.row import Row
from penstock.batch.rows.task_forms import ColumnSpeech, ColumnTranscripts, ColumnVectors
from penstock.types import EmbeddingRequest, Sampling, Speech, TranscriptionRequest


def speaking(model: str, volume: int) -> Any:
    async def speech(request):
        return Speech(bytes([volume, 0]) * 100, 8000)

    return SimpleNamespace(model_source=model, speech=speech)


async def test_models_that_speak_into_one_directory_share_no_file(tmp_path):
    form = ColumnSpeech(
        folder=tmp_path,
        audio_format="wav",
        voice=None,
        template=Template("{line}", "speak"),
        sampling=Sampling(),
    )
    row = Row(0, {"line": "a fox"})
    form.prepare(row)
    first = await form.ask(speaking("low", 1), row)
    content = (tmp_path / first.response).read_bytes()
    second = await form.ask(speaking("loud", 9), row)
    assert second.response != first.response
    assert (tmp_path / first.response).read_bytes() == content
    assert (await form.ask(speaking("low", 1), row)).response == first.response


async def test_a_row_that_cannot_be_read_loads_no_recording(tmp_path):
    path = tmp_path / "a.wav"
    path.write_bytes(b"RIFF")
    form = ColumnTranscripts(audio="said", asked=TranscriptionRequest(b""), sampling=Sampling())
    rows = [Row(0, {"said": str(path)}, "invalid UTF-8"), Row(1, {"said": str(path)})]
    async for _ in form.ready(rows):
        pass
    form.close()
    assert [row.request for row in rows] == [None, b"RIFF"]


@pytest.mark.parametrize("kind", ["dense", "multi", "sparse"])
def test_vectors_that_an_earlier_version_stored_are_not_taken(kind):
    encode = msgspec.msgpack.Encoder(order="deterministic").encode
    asked = EmbeddingRequest([], vectors=kind, packed=kind == "dense")
    earlier = blake2b(encode(("embeddings", asked)), digest_size=16)
    earlier.update(encode(("a fox", None)))
    form = ColumnVectors(
        vectors=kind, template=Template("{line}", "embed"), sampling=Sampling(temperature=0)
    )
    row = Row(0, {"line": "a fox"})
    form.prepare(row)
    assert row.digest != earlier.digest()
