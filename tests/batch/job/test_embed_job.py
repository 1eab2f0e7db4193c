"""Jobs that embed: what becomes of texts, vectors, limits and options."""

import json
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import penstock
from penstock.batch.rows.task_forms import FLOAT_BYTES, floats, packed_as, unpack
from penstock.batch.write.parquet import ParquetWriter
from penstock.engines.simulated.engine import SimulatedEngine
from penstock.errors import ConfigError, RequestError, UnsupportedError
from penstock.types import Embeddings, Usage

TEXTS = ["one", "two", "a text that is longer than the others", "two"]


def embed(source, output=None, **options):
    options = {"engine": "simulated", "embed": "text", **options}
    return penstock.run(source, output, progress=False, **options)


def table(texts=TEXTS):
    return pa.table({"id": range(len(texts)), "text": texts})


def vectors(result):
    return [row["embedding"] for row in result.rows()]


class TestVectors:
    def test_a_column_of_lists_of_one_size(self, tmp_path):
        path = tmp_path / "vectors.parquet"
        result = embed(table(), path, dimensions=6)
        found = pq.read_table(path)
        assert found.schema.field("embedding").type == pa.list_(pa.float32(), 6)
        assert found.column_names == [
            *("id", "text", "embedding", "status", "error", "usage", "attempts", "latency_ms")
        ]
        assert found["id"].to_pylist() == [0, 1, 2, 3]
        assert found["embedding"][1] == found["embedding"][3] != found["embedding"][0]
        assert result.counts.deduplicated == 1

    def test_without_dimensions_the_width_is_the_models(self, tmp_path):
        embed(table(), tmp_path / "v.parquet")
        kind = pq.read_schema(tmp_path / "v.parquet").field("embedding").type
        assert pa.types.is_fixed_size_list(kind)

    @pytest.mark.parametrize(
        ("name", "kind"), [("float16", pa.float16()), ("int8", pa.int8()), (None, pa.float32())]
    )
    def test_types_of_numbers(self, tmp_path, name, kind):
        embed(table(), tmp_path / "v.parquet", dimensions=4, vector_type=name)
        assert pq.read_schema(tmp_path / "v.parquet").field("embedding").type == pa.list_(kind, 4)

    def test_int8_keeps_the_direction(self):
        vector = [0.1, -0.2, 0.05]
        assert unpack(packed_as("int8", floats(vector)), "int8").tolist() == [64, -127, 32]
        assert unpack(packed_as("int8", floats([0.0, 0.0])), "int8").tolist() == [0, 0]

    def test_vectors_get_no_dictionary_and_other_columns_do(self, tmp_path):
        words = pa.array([["a", "b"]] * table().num_rows, pa.list_(pa.string(), 2))
        embed(table().append_column("words", words), tmp_path / "v.parquet", dimensions=4)
        group = pq.ParquetFile(tmp_path / "v.parquet").metadata.row_group(0)
        columns = [group.column(at) for at in range(group.num_columns)]
        coded = {column.path_in_schema for column in columns if column.has_dictionary_page}
        assert {"text", "words.list.element", "status", "usage.prompt_tokens"} <= coded
        assert "embedding.list.element" not in coded

    def test_rows_in_memory_and_lines_have_lists(self, tmp_path):
        (row, *_) = embed(table(), dimensions=3).rows()
        embed(table(), tmp_path / "v.jsonl", dimensions=3)
        line = json.loads((tmp_path / "v.jsonl").read_text().splitlines()[0])
        assert line["embedding"] == row["embedding"]
        assert len(row["embedding"]) == 3

    def test_text_of_several_columns(self):
        one = vectors(embed(table(), embed="{id}: {text}", dimensions=2))
        other = embed(table([f"{i}: {text}" for i, text in enumerate(TEXTS)]), dimensions=2)
        assert one == vectors(other)

    def test_an_input_type_changes_the_vector(self):
        plain, query = (
            next(embed(table(), dimensions=2, input_type=kind).rows())["embedding"]
            for kind in (None, "query")
        )
        assert plain != query


class TestKinds:
    @pytest.mark.parametrize("name", ["float32", "float16", "int8"])
    def test_a_vector_for_each_token(self, tmp_path, name):
        source = table(["x" * 99, "ab", "b"])
        options = {"engine_kwargs": {"max_model_len": 32}, "vector_type": name}
        path = tmp_path / "v.parquet"
        embed(source, path, vectors="multi", dimensions=3, **options)
        found = pq.read_table(path)
        number = {"float32": pa.float32(), "float16": pa.float16(), "int8": pa.int8()}[name]
        assert found.schema.field("embedding").type == pa.list_(pa.list_(number, 3))
        none, both, one = found["embedding"].to_pylist()
        assert none is None
        assert len(both) == 2
        assert one == both[1:]

    def test_without_dimensions_the_width_is_the_models(self, tmp_path):
        path = tmp_path / "v.parquet"
        embed(table(), path, vectors="multi")
        kind = pq.read_schema(path).field("embedding").type
        assert pa.types.is_list(kind)
        assert pa.types.is_fixed_size_list(kind.value_type)

    def test_sparse_vectors_are_indices_and_values(self, tmp_path):
        path = tmp_path / "v.parquet"
        embed(table(["abba!", "b"]), path, vectors="sparse")
        found = pq.read_table(path)
        lists = {"indices": pa.list_(pa.int32()), "values": pa.list_(pa.float32())}
        assert found.schema.field("embedding").type == pa.struct(lists)
        assert found["embedding"].to_pylist() == [
            {"indices": [33, 97, 98], "values": [1.0, 2.0, 2.0]},
            {"indices": [98], "values": [1.0]},
        ]
        embed(table(["abba!"]), tmp_path / "v.jsonl", vectors="sparse")
        line = json.loads((tmp_path / "v.jsonl").read_text())
        assert line["embedding"]["indices"] == [33, 97, 98]

    @pytest.mark.parametrize("kind", ["multi", "sparse"])
    def test_they_come_from_the_cache_by_kind(self, tmp_path, kind):
        given = {"cache": tmp_path / "cache"}
        embed(table(), **given)
        first = embed(table(), vectors=kind, **given)
        assert first.counts.from_cache == 0
        again = embed(table(), vectors=kind, **given)
        assert again.counts.from_cache == 3
        assert vectors(again) == vectors(first)

    @pytest.mark.parametrize("kind", ["multi", "sparse"])
    def test_an_engine_that_makes_none_is_refused_before_the_first_row(self, kind, monkeypatch):
        start = SimulatedEngine.start

        async def dense(engine):
            await start(engine)
            engine.capabilities = msgspec.structs.replace(engine.capabilities, vectors=("dense",))

        monkeypatch.setattr(SimulatedEngine, "start", dense)
        with pytest.raises(UnsupportedError, match=f"not {kind} ones: give"):
            embed(table(), vectors=kind)


class TestFaults:
    def test_a_row_that_fails_is_null_among_lists_of_one_size(self, tmp_path):
        source = table(["one", "x" * 99, "two"])
        options = {"engine_kwargs": {"max_model_len": 32}, "dimensions": 4}
        embed(source, tmp_path / "v.parquet", **options)
        found = pq.read_table(tmp_path / "v.parquet")
        assert found.schema.field("embedding").type == pa.list_(pa.float32(), 4)
        assert [row is None for row in found["embedding"].to_pylist()] == [False, True, False]
        assert found["error"][1].as_py()["type"] == "context_length_exceeded"

    def test_a_row_without_image_and_text_says_so(self, monkeypatch):
        async def sees(engine):
            engine.capabilities = msgspec.structs.replace(
                engine.capabilities, inputs=("text", "image")
            )

        monkeypatch.setattr(SimulatedEngine, "start", sees)
        source = pa.table({"photo": pa.array([None], pa.binary())})
        (row,) = embed(source, embed="photo", image="photo").rows()
        assert row["embedding"] is None
        assert row["error"]["message"] == "the row has no image in 'photo', and no text"

    @pytest.mark.parametrize(
        ("numbers", "kind", "why"),
        [
            ([1e5, 0.0], "float16", "numbers that float16 does not hold"),
            ([1e39, 0.0], "float32", "numbers that float32 does not hold"),
            ([float("nan"), 0.0], "int8", "numbers that int8 does not hold"),
            ([1.0, 0.0, 0.0], "float32", "3 numbers; others have 2"),
            ([], "float32", "the vector has no numbers"),
        ],
    )
    def test_a_vector_that_does_not_fit_is_an_error_row(
        self, tmp_path, monkeypatch, numbers, kind, why
    ):
        async def embeddings(engine, request):
            vector = numbers if request.inputs == ["odd"] else [0.5, 0.5]
            return Embeddings([vector], Usage(1))

        monkeypatch.setattr(SimulatedEngine, "embeddings", embeddings)
        path = tmp_path / "v.parquet"
        embed(table(["one", "odd", "two"]), path, vector_type=kind)
        found = pq.read_table(path)
        assert found["status"].to_pylist() == ["ok", "error", "ok"]
        assert why in found["error"][1].as_py()["message"]

    @pytest.mark.parametrize(("vectors", "none"), [("dense", []), ("multi", []), ("multi", [[]])])
    def test_one_without_numbers_is_an_error_row(self, monkeypatch, vectors, none):
        async def embeddings(engine, request):
            some = [[0.5, 0.5]] if vectors == "multi" else [0.5, 0.5]
            made: Any = [none if request.inputs == ["one"] else some]
            return Embeddings(made, Usage(1), multi=made)

        monkeypatch.setattr(SimulatedEngine, "embeddings", embeddings)
        rows = list(embed(table(["one", "two"]), vectors=vectors).rows())
        assert [row["status"] for row in rows] == ["error", "ok"]
        assert rows[0]["error"]["message"] == "the vector has no numbers"

    @pytest.mark.parametrize("refuses", [True, False])
    def test_dimensions_that_the_model_has_not_end_the_job(self, tmp_path, monkeypatch, refuses):
        async def embeddings(engine, request):
            if refuses:
                raise RequestError("its vectors have 2 dimensions", param="dimensions")
            return Embeddings([[0.5, 0.5]], Usage(1))

        path = tmp_path / "v.jsonl"
        with monkeypatch.context() as patch:
            patch.setattr(SimulatedEngine, "embeddings", embeddings)
            with pytest.raises(ConfigError, match=r"^dimensions: .*2") as refused:
                embed(table(), path, dimensions=4)
        assert refused.value.field == "dimensions"
        assert not path.exists()
        assert embed(table(), path, dimensions=3).counts.rows == 4  # nothing was begun

    def test_truncate_cuts_it(self):
        source = table(["x" * 99])
        result = embed(source, engine_kwargs={"max_model_len": 32}, on_length="truncate")
        (row,) = result.rows()
        assert row["status"] == "ok"
        assert row["usage"]["prompt_tokens"] <= 32

    def test_only_failing_rows_and_no_rows(self, tmp_path):
        embed(table(["x" * 99]), tmp_path / "v.parquet", engine_kwargs={"max_model_len": 32})
        assert pq.read_table(tmp_path / "v.parquet")["embedding"].to_pylist() == [None]
        embed(table([]), tmp_path / "empty.parquet")
        assert "embedding" in pq.read_schema(tmp_path / "empty.parquet").names

    @pytest.mark.parametrize(
        ("options", "field"),
        [
            ({"prompt": "{text}"}, "prompt"),
            ({"schema": {"type": "object"}}, "schema"),
            ({"temperature": 0.5}, "temperature"),
            ({"choices": "a,b"}, "choices"),
            ({"adapter": "one"}, "adapter"),
            ({"on_length": "raise"}, "on_length"),
            ({"dimensions": 0}, "dimensions"),
            ({"vector_type": "float64"}, "vector_type"),
            ({"vectors": "many"}, "vectors"),
            ({"vectors": "sparse", "dimensions": 8}, "dimensions"),
            ({"embed": None, "prompt": "{text}", "vectors": "multi"}, "vectors"),
            ({"input_type": "passage"}, "input_type"),
            ({"embed": "txt"}, "embed"),
            ({"embed": None, "prompt": "{text}", "dimensions": 8}, "dimensions"),
        ],
    )
    def test_what_has_no_meaning_is_refused_by_name(self, options, field):
        with pytest.raises(ConfigError) as caught:
            embed(table(), **options)
        assert caught.value.field == field


def test_vectors_of_another_type_are_not_taken_from_the_cache(tmp_path):
    given = {"cache": tmp_path / "cache", "dimensions": 4}
    whole = embed(table(), **given)
    small = embed(table(), vector_type="int8", **given)
    assert small.counts.from_cache == 0
    assert [len(vector) for vector in vectors(small)] == [4] * 4
    again = embed(table(), vector_type="int8", **given)
    assert again.counts.from_cache == 3
    assert vectors(again) == vectors(small) != vectors(whole)


def test_a_job_of_other_vectors_is_another_job(tmp_path):
    path = tmp_path / "v.parquet"
    embed(table(), path, dimensions=4)
    assert embed(table(), path, dimensions=4).already_complete
    with pytest.raises(penstock.PenstockError, match="embed"):
        embed(table(), path, dimensions=8)
    with pytest.raises(penstock.PenstockError, match="embed"):
        embed(table(), path, dimensions=4, vectors="multi")


def test_the_bytes_of_a_vector_count_once_in_a_part(tmp_path, monkeypatch):
    sizes = []
    finish = ParquetWriter.finish

    def spied(writer):
        sizes.append(writer.nbytes)
        finish(writer)

    monkeypatch.setattr(ParquetWriter, "finish", spied)
    source = table([f"text {number}" for number in range(64)])
    embed(source, tmp_path / "v.parquet", dimensions=256)
    (size,) = sizes
    answers = 64 * 256 * FLOAT_BYTES
    assert answers < size < 1.5 * answers
