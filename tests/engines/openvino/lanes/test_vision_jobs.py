"""Jobs and processors over images, on the embedded engine."""

import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import pytest_asyncio

import penstock
from penstock.batch import OpenVINOEngineProcessorConfig, build_processor
from penstock.batch.decisions.questions import questions_of
from penstock.engines.openvino.engine import OpenVINOEngine
from penstock.errors import ConfigError, UnsupportedError
from penstock.testing import answer
from penstock.types import ChatRequest, DecideRequest, Sampling
from vision_models import bomb, image_file, image_part, picture, vision_model

pytestmark = pytest.mark.asyncio(loop_scope="module")
SAMPLING = Sampling(temperature=0, max_tokens=6, ignore_eos=True)
ASKED: dict[str, Any] = {"prompt": "What is {id}?", "max_tokens": 6, "ignore_eos": True}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(tmp_path_factory):
    model = vision_model(tmp_path_factory.mktemp("model"))
    options = {"deterministic": True, "kv_cache_memory_bytes": 64 << 20, "max_num_seqs": 16}
    engine = OpenVINOEngine(str(model), engine_kwargs=options)
    await engine.start()
    yield engine
    await engine.stop()


async def alone(engine, text, *files):
    parts = [*map(image_part, files), {"type": "text", "text": text}]
    found = await answer(engine, ChatRequest([{"role": "user", "content": parts}], SAMPLING))
    return found.texts[0]


async def test_a_column_of_images_as_hugging_face_writes_it(engine, tmp_path):
    files = [image_file(number) for number in range(6)]
    photos = [{"bytes": file, "path": None} for file in files]
    pq.write_table(pa.table({"id": range(6), "photo": photos}), tmp_path / "in.parquet")
    result = await penstock.arun(
        tmp_path / "in.parquet", tmp_path / "out.parquet", engine=engine, image="photo", **ASKED
    )
    assert result.counts.ok == 6
    out = pq.read_table(tmp_path / "out.parquet")
    assert out["photo"].to_pylist() == photos
    wanted = [await alone(engine, f"What is {number}?", files[number]) for number in range(6)]
    assert out["response"].to_pylist() == wanted


async def test_rows_with_and_without_images_and_bad_ones_go_together(engine):
    one, other = image_file(1), image_file(2, "JPEG")
    rows = [
        {"id": 0, "photo": None},
        {"id": 1, "photo": [one, other]},
        {"id": 2, "photo": bomb()},
        {"id": 3, "photo": b"no image"},
        {"id": 4, "photo": "/nowhere.png"},
        {"id": 5, "photo": one[: len(one) // 2]},
        {"id": 1, "photo": [one, other]},
        {"id": 7, "photo": picture(1)},
    ]
    result = await penstock.arun(rows, engine=engine, image="photo", **ASKED)
    found = list(result.rows())
    assert [row["status"] for row in found] == [
        *("ok", "ok", "error", "error", "error", "error", "ok", "ok")
    ]
    assert "1,600,000,000 pixels" in found[2]["error"]["message"]
    assert {found[n]["error"]["type"] for n in (2, 3, 4, 5)} == {"invalid_request_error"}
    assert found[1]["response"] == await alone(engine, "What is 1?", one, other)
    assert found[7]["response"] == await alone(engine, "What is 7?", one)
    assert found[6]["response"] == found[1]["response"]
    assert result.counts.deduplicated == 1


async def test_a_column_of_images_decided_upon(engine):
    files = [image_file(1), image_file(2), image_file(1), b"no image"]
    rows = [{"id": 0, "photo": file} for file in files]
    result = await penstock.arun(
        rows, engine=engine, prompt="Which?", image="photo", choices="cat,dog", limit=4
    )
    found = [row["choice_probabilities"] for row in result.rows()]
    assert found[0] == found[2] != found[1]
    assert found[3] is None
    assert result.counts.deduplicated == 1
    request = DecideRequest(
        [{"role": "user", "content": [image_part(files[1]), *_text("Which?")]}],
        questions_of(None, "cat,dog"),
    )
    (decision,) = (await engine.decide(request)).items
    assert list(found[1].values()) == decision.probabilities


async def test_equal_texts_about_other_images_are_other_requests(engine):
    rows = [{"id": 0, "photo": image_file(number)} for number in (1, 2, 1)]
    result = await penstock.arun(rows, engine=engine, image="photo", **ASKED)
    assert result.counts.deduplicated == 1
    first, second, third = (row["response"] for row in result.rows())
    assert first == third != second


async def test_conversations_hold_images(engine, tmp_path):
    path = tmp_path / "photo.png"
    path.write_bytes(image_file(3))
    text = {"type": "text", "text": "What is it?"}
    chats = [
        [{"role": "user", "content": [{"type": "image", "image": str(path)}, text]}],
        [{"role": "user", "content": [image_part(image_file(3)), text]}],
        [{"role": "user", "content": "What is it?"}],
    ]
    lines = "".join(json.dumps({"chat": chat}) + "\n" for chat in chats)
    (tmp_path / "in.jsonl").write_text(lines)
    result = await penstock.arun(
        tmp_path / "in.jsonl", engine=engine, messages="chat", max_tokens=6, ignore_eos=True
    )
    by_path, by_uri, plain = (row["response"] for row in result.rows())
    assert by_path == by_uri == await alone(engine, "What is it?", image_file(3))
    assert plain != by_uri


async def test_batch_lines_hold_images(engine):
    body = {
        "model": "m",
        "messages": [{"role": "user", "content": [image_part(image_file(1)), *_text("What?")]}],
        "temperature": 0,
        "max_tokens": 6,
        "ignore_eos": True,
    }
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}
    result = await penstock.arun([line], engine=engine)
    answered = next(iter(result.rows()))["response"]["body"]["choices"][0]["message"]["content"]
    assert answered == await alone(engine, "What?", image_file(1))


def _text(text):
    return [{"type": "text", "text": text}]


def _image(value):
    return {"type": "image", "image": value}


async def test_a_processor_prepares_images(engine):
    config = OpenVINOEngineProcessorConfig(engine=engine, prepare_multimodal_stage=True)
    processor = build_processor(
        config,
        preprocess=lambda row: {
            "messages": [{"role": "user", "content": [_image(row["photo"]), *_text("A?")]}],
            "sampling_params": {"temperature": 0, "max_tokens": 6, "ignore_eos": True},
        },
    )
    rows = [row async for row in processor([{"photo": image_file(n)} for n in range(3)])]
    wanted = [await alone(engine, "A?", image_file(n)) for n in range(3)]
    assert [row["generated_text"] for row in rows] == wanted


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"image": "photo", "messages": "chat"}, "conversations hold their own images"),
        ({"image": "photo"}, "goes with a prompt"),
        ({"image": "foto", "prompt": "{id}"}, "no column 'foto'"),
    ],
)
async def test_an_image_column_that_has_no_meaning_is_refused(options, words):
    table = pa.table({"id": [1], "photo": [b"x"], "chat": ["[]"]})
    with pytest.raises(ConfigError, match=words):
        await penstock.arun(table, engine="simulated", **options)


async def test_a_text_model_refuses_a_column_of_images_at_once():
    with pytest.raises(UnsupportedError, match="no model that sees"):
        await penstock.arun(
            [{"id": 1, "photo": b"x"}], engine="simulated", prompt="{id}", image="photo"
        )
