"""Jobs and processors that embed images, on the embedded engine."""

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import pytest_asyncio

import penstock
from penstock.batch import OpenVINOEngineProcessorConfig, build_processor
from penstock.engines.openvino.engine import OpenVINOEngine
from penstock.errors import UnsupportedError
from penstock.types import ChatRequest, EmbeddingRequest
from vision_models import bomb, image_embedding_model, image_file, image_part, picture
from word_models import embedding_model

pytestmark = pytest.mark.asyncio(loop_scope="module")
OPTIONS: dict[str, Any] = {"inference_precision": "f32", "num_threads": 2}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(tmp_path_factory):
    model = image_embedding_model(tmp_path_factory.mktemp("model"))
    engine = OpenVINOEngine(str(model), engine_kwargs=OPTIONS)
    await engine.start()
    yield engine
    await engine.stop()


async def alone(engine, text, *files):
    parts = [*map(image_part, files), *([{"type": "text", "text": text}] if text else [])]
    chat = ChatRequest([{"role": "user", "content": parts}])
    found = await engine.embeddings(EmbeddingRequest([chat]))
    return pytest.approx(found.vectors[0], abs=1e-5)


async def test_a_column_of_images_beside_a_column_of_texts(engine, tmp_path):
    files = [image_file(number) for number in range(6)]
    photos = [{"bytes": file, "path": None} for file in files]
    texts = [f"photo {number}" for number in range(6)]
    pq.write_table(pa.table({"title": texts, "photo": photos}), tmp_path / "in.parquet")
    result = await penstock.arun(
        *(tmp_path / "in.parquet", tmp_path / "out.parquet"),
        **{"engine": engine, "embed": "title", "image": "photo"},
    )
    assert result.counts.ok == 6
    out = pq.read_table(tmp_path / "out.parquet")
    assert out["photo"].to_pylist() == photos
    assert pa.types.is_fixed_size_list(out.schema.field("embedding").type)
    for number, vector in enumerate(out["embedding"].to_pylist()):
        assert vector == await alone(engine, texts[number], files[number])


async def test_images_alone_and_rows_of_all_kinds(engine):
    one, other = image_file(1), image_file(2, "JPEG")
    rows = [
        {"photo": one, "title": "a"},
        {"photo": None, "title": "a"},
        {"photo": [one, other], "title": None},
        {"photo": bomb(), "title": "a"},
        {"photo": b"no image", "title": "a"},
        {"photo": one[: len(one) // 2], "title": "a"},
        {"photo": None, "title": None},
        {"photo": picture(1), "title": "a"},
    ]
    result = await penstock.arun(rows, engine=engine, embed="title", image="photo")
    found = list(result.rows())
    wrong = ("error", "error", "error", "error")
    assert [row["status"] for row in found] == ["ok", "ok", "ok", *wrong, "ok"]
    assert "1,600,000,000 pixels" in found[3]["error"]["message"]
    assert {row["error"]["type"] for row in found[3:7]} == {"invalid_request_error"}
    assert found[0]["embedding"] == await alone(engine, "a", one)
    assert found[1]["embedding"] == await alone(engine, "a")
    assert found[2]["embedding"] == await alone(engine, "", one, other)
    assert found[7]["embedding"] == await alone(engine, "a", one)
    result = await penstock.arun(
        [{"photo": one}, {"photo": other}], engine=engine, embed="photo", image="photo"
    )
    first, second = (row["embedding"] for row in result.rows())
    assert first == await alone(engine, "", one)
    assert second == await alone(engine, "", other)


async def test_equal_texts_beside_other_images_are_other_requests(engine):
    rows = [{"title": "a", "photo": image_file(number)} for number in (1, 2, 1)]
    result = await penstock.arun(rows, engine=engine, embed="title", image="photo")
    assert result.counts.deduplicated == 1
    first, second, third = (row["embedding"] for row in result.rows())
    assert first == third != second


async def test_a_text_that_is_too_long_beside_an_image_is_cut(engine):
    rows = [{"title": "word " * 2000, "photo": image_file(1)}]
    options: dict[str, Any] = {"engine": engine, "embed": "title", "image": "photo"}
    (refused,) = (await penstock.arun(rows, **options)).rows()
    assert refused["error"]["type"] == "context_length_exceeded"
    (cut,) = (await penstock.arun(rows, on_length="truncate", **options)).rows()
    assert cut["status"] == "ok"
    assert 500 < cut["usage"]["prompt_tokens"] <= 1024


async def test_a_model_of_texts_refuses_a_column_of_images(tmp_path):
    rows = [{"title": "red", "photo": image_file(1)}]
    with pytest.raises(UnsupportedError, match="no model that sees"):
        await penstock.arun(
            rows,
            model=str(embedding_model(tmp_path)),
            engine_kwargs={**OPTIONS, "num_threads": 1},
            embed="title",
            image="photo",
        )


@pytest.mark.parametrize("stages", [{}, {"chat_template_stage": {"enabled": True}}])
async def test_a_processor_embeds_conversations(engine, stages):
    config = OpenVINOEngineProcessorConfig(
        engine=engine, task_type="embed", prepare_multimodal_stage=True, **stages
    )
    text = {"type": "text", "text": "A?"}
    contents = [[{"type": "image", "image": image_file(n)}, text] for n in range(3)]
    processor = build_processor(
        config,
        preprocess=lambda row: {"messages": [{"role": "user", "content": row["content"]}]},
    )
    rows = [{"content": content} for content in [*contents, "A?"]]
    found = [row async for row in processor(rows)]
    wanted = [await alone(engine, "A?", image_file(n)) for n in range(3)]
    assert [row["embeddings"] for row in found[:3]] == wanted
    assert found[3]["embeddings"] == await alone(engine, "A?")


async def test_batch_lines_hold_images(engine):
    parts = [image_part(image_file(1))]
    body = {"model": "m", "messages": [{"role": "user", "content": parts}]}
    line = {"custom_id": "a", "method": "POST", "url": "/v1/embeddings", "body": body}
    result = await penstock.arun([line], engine=engine)
    answered = next(iter(result.rows()))["response"]["body"]["data"][0]["embedding"]
    assert answered == await alone(engine, "", image_file(1))
