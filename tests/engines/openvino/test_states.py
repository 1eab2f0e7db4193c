"""Vectors of each token, and sparse ones, on models so small that the right answers are known."""

import asyncio
import json
import math
import struct

import numpy as np
import pytest
import pytest_asyncio

from penstock.engines.openvino import tasks
from penstock.engines.openvino.engine import OpenVINOEngine
from penstock.engines.openvino.options import OpenVINOOptions
from penstock.engines.openvino.states import TokenModel, text_layers
from penstock.engines.process import Call
from penstock.errors import EngineStartError, RequestError, UnsupportedError
from penstock.types import EmbeddingRequest
from word_models import CONTEXT, VOCABULARY, WORDS, embedding_model, sparse_model

OPTIONS = {"inference_precision": "f32", "num_threads": 1}


async def started(path, **options):
    engine = OpenVINOEngine(path, engine_kwargs={**OPTIONS, **options})
    await engine.start()
    return engine


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def embedder(tmp_path_factory):
    engine = await started(embedding_model(tmp_path_factory.mktemp("embed")))
    yield engine
    await engine.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def splade(tmp_path_factory):
    engine = await started(sparse_model(tmp_path_factory.mktemp("sparse")))
    yield engine
    await engine.stop()


async def made(engine, *inputs, **options):
    return await engine.embeddings(EmbeddingRequest(list(inputs), **options))


def words_of(matrix):
    """The word that each vector stands for; None for a special token, whose vector is 0."""
    return [WORDS[int(np.argmax(row))] if any(row) else None for row in np.asarray(matrix)]


@pytest.mark.asyncio(loop_scope="module")
class TestMulti:
    async def test_a_vector_for_each_token_special_ones_included(self, embedder):
        found = await made(embedder, "red green sea", "fox", [4, 5], vectors="multi")
        assert found.vectors == []
        assert [words_of(matrix) for matrix in found.multi] == [
            [None, "red", "green", "sea", None],
            [None, "fox", None],
            ["red", "green"],
        ]
        assert found.usage.prompt_tokens == 5 + 3 + 2
        assert np.linalg.norm(found.multi[0], axis=1).tolist() == [0, 1, 1, 1, 0]

    async def test_a_text_that_is_too_long_is_refused_or_cut(self, embedder):
        with pytest.raises(RequestError, match="16 tokens"):
            await made(embedder, "red " * 20, vectors="multi")
        found = await made(embedder, "red " * 20, vectors="multi", truncate=True)
        assert len(found.multi[0]) == found.usage.prompt_tokens == CONTEXT

    async def test_calls_of_all_kinds_go_together(self, embedder):
        dense, multi, cut = await asyncio.gather(
            made(embedder, *WORDS * 40),
            made(embedder, *WORDS * 40, vectors="multi"),
            made(embedder, "red hill", vectors="multi", dimensions=2),
        )
        assert [WORDS[int(np.argmax(vector))] for vector in dense.vectors] == WORDS * 40
        assert [words_of(matrix)[1] for matrix in multi.multi] == WORDS * 40
        assert cut.multi == [[[0, 0], [1, 0], [0, 0], [0, 0]]]

    async def test_an_answer_has_so_many_numbers_at_most(self, tmp_path, monkeypatch):
        task = tasks.Embedding(
            embedding_model(tmp_path), OpenVINOOptions(inference_precision="f32"), CONTEXT
        )
        monkeypatch.setattr(tasks, "_MOST_NUMBERS", 8 * 7)
        texts, wide = ["red", "red green"], None
        calls = [
            Call(1, "embed", [texts, wide, None, False, "multi", False]),
            Call(2, "embed", [[*texts, "sea"], wide, None, False, "multi", False]),
            Call(3, "embed", [["red " * 12], wide, None, False, "multi", False]),
        ]
        (failed,) = task.begin_embeddings(calls)
        assert (failed.id, failed.param) == (2, "input")
        assert "at most 56" in failed.message

    async def test_sparse_vectors_are_refused(self, embedder):
        assert embedder.capabilities.vectors == ("dense", "multi")
        with pytest.raises(UnsupportedError, match=r"makes dense and multi vectors .*SPLADE"):
            await made(embedder, "red", vectors="sparse")

    async def test_the_layer_of_a_colbert_model_is_applied(self, tmp_path):
        path = embedding_model(tmp_path)
        weight = np.zeros((2, len(WORDS)), np.float32)
        weight[1, WORDS.index("dog")] = 3
        dense_layer(tmp_path, weight)
        engine = await started(path, embedding_normalize=False)
        try:
            found = await made(engine, "red dog", vectors="multi")
            assert found.multi == [[[0, 0], [0, 0], [0, 3], [0, 0]]]
        finally:
            await engine.stop()


@pytest.mark.asyncio(loop_scope="module")
class TestSparse:
    async def test_the_largest_weight_of_any_token(self, splade):
        found = await made(splade, "red", "red green", [VOCABULARY.index("sea")], vectors="sparse")
        red = VOCABULARY.index("red")
        one, half = (pytest.approx(math.log1p(logit), abs=1e-5) for logit in (1, 0.5))
        assert [(v.indices, v.values) for v in found.sparse] == [
            ([red, red + 1], [one, half]),
            ([red, red + 1, red + 2], [one, one, half]),
            ([VOCABULARY.index("sea")], [one]),
        ]
        assert found.usage.prompt_tokens == 3 + 4 + 1

    async def test_a_text_without_weights_has_an_empty_one(self, splade):
        (vector,) = (await made(splade, [2, 3], vectors="sparse")).sparse
        assert (vector.indices, vector.values) == ([], [])

    @pytest.mark.parametrize("kind", ["dense", "multi", False])
    async def test_other_vectors_are_refused(self, splade, kind):
        assert splade.capabilities.vectors == ("sparse",)
        with pytest.raises(UnsupportedError, match=f"makes sparse vectors .*not {kind} ones"):
            await made(splade, "red", vectors=kind)
        await splade.check_health()

    async def test_there_are_no_dimensions(self, splade):
        with pytest.raises(RequestError, match="no dimensions") as caught:
            await made(splade, "red", vectors="sparse", dimensions=4)
        assert caught.value.param == "dimensions"


@pytest.mark.asyncio(loop_scope="module")
class TestTexts:
    """Layers behind the pooling, as EmbeddingGemma and LaBSE have them."""

    def modules(self, path, *names):
        folders = ["", *(f"{at}_{name}" for at, name in enumerate(names[1:], 1))]
        listed = [
            {"type": f"sentence_transformers.models.{name}", "path": folder}
            for name, folder in zip(names, folders, strict=True)
        ]
        (path / "modules.json").write_text(json.dumps(listed))
        for folder in folders[1:]:
            (path / folder).mkdir()

    @pytest.mark.parametrize("normalize", [True, False])
    async def test_they_are_applied_one_after_the_other(self, tmp_path, normalize):
        path = embedding_model(tmp_path)
        self.modules(tmp_path, "Transformer", "Pooling", "Dense", "Dense", "Normalize")
        (tmp_path / "1_Pooling/config.json").write_text('{"pooling_mode": "mean"}')
        weight = np.zeros((3, len(WORDS)), np.float32)
        weight[:, WORDS.index("dog")] = [4, 8, 16]
        write_dense(tmp_path / "2_Dense", weight)
        turn = np.roll(np.eye(3, dtype=np.float32), 1, axis=0)
        write_dense(tmp_path / "3_Dense", turn, "torch.nn.modules.activation.Tanh")
        wanted = np.tanh([4, 1, 2])  # "dog" is one of four tokens: 1, 2 and 4, turned by a place
        if normalize:
            wanted /= np.linalg.norm(wanted)
        engine = await started(path, embedding_normalize=normalize)
        try:
            found = await made(engine, "dog sea", [2, VOCABULARY.index("dog"), 11, 3])
            for vector in found.vectors:
                assert vector == pytest.approx(wanted, abs=1e-6)
            cut = (await made(engine, "dog sea", dimensions=2)).vectors[0]
            length = np.linalg.norm(wanted[:2]) if normalize else 1
            assert cut == pytest.approx(wanted[:2] / length, abs=1e-6)
            with pytest.raises(RequestError, match="have 3 dimensions"):
                await made(engine, "dog", dimensions=4)
            multi = await made(engine, "dog", dimensions=8, vectors="multi")
            assert words_of(multi.multi[0]) == [None, "dog", None]
        finally:
            await engine.stop()

    @pytest.mark.parametrize(
        "names",
        [
            ["Transformer", "Pooling", "Dense"],  # whose files are missing
            ["Transformer", "Dense", "Pooling"],
            ["Transformer", "Pooling", "LayerNorm"],
            ["Transformer", "WeightedLayerPooling", "Pooling"],
        ],
    )
    async def test_a_part_that_is_not_applied_is_refused_by_name(self, tmp_path, names):
        path = embedding_model(tmp_path)
        self.modules(tmp_path, *names)
        (other,) = {"Dense", "LayerNorm", "WeightedLayerPooling"} & set(names)
        with pytest.raises(EngineStartError, match=rf"lists {other} in '\d_{other}'"):
            await started(path)

    @pytest.mark.parametrize(
        ("damage", "why"),
        [
            ("config", "its config.json is missing"),
            ("weights", "its model.safetensors is missing"),
            ("kind", "its linear.weight is BF16, and neither F32 nor F16"),
            ("activation", "its activation_function is GELU, and neither Identity nor Tanh"),
        ],
    )
    async def test_why_a_layer_cannot_be_applied(self, tmp_path, damage, why):
        self.modules(tmp_path, "Transformer", "Pooling", "Dense_1024")
        listed = (
            (tmp_path / "modules.json").read_text().replace("models.Dense_1024", "models.Dense")
        )
        (tmp_path / "modules.json").write_text(listed)
        folder = tmp_path / "2_Dense_1024"
        activation = "torch.nn.GELU" if damage == "activation" else "torch.nn.Identity"
        write_dense(folder, np.eye(2, dtype=np.float32), activation)
        weights = folder / "model.safetensors"
        if damage == "kind":
            weights.write_bytes(weights.read_bytes().replace(b'"F32"', b'"BF16"'))
            content = weights.read_bytes()
            size = content.index(b"}}") + 2 - 8
            weights.write_bytes(struct.pack("<Q", size) + content[8:])
        elif damage in ("config", "weights"):
            (folder / "config.json" if damage == "config" else weights).unlink()
        with pytest.raises(EngineStartError, match=f"in '2_Dense_1024', .* lack: {why}"):
            text_layers(tmp_path)


def dense_layer(path, weight, activation="torch.nn.modules.linear.Identity"):
    kinds = ["sentence_transformers.models.Transformer", "pylate.models.Dense.Dense"]
    modules = [{"type": kind, "path": ("", "1_Dense")[at]} for at, kind in enumerate(kinds)]
    (path / "modules.json").write_text(json.dumps(modules))
    (path / "1_Dense").mkdir()
    write_dense(path / "1_Dense", weight, activation)


def write_dense(folder, weight, activation="torch.nn.modules.linear.Identity"):
    (folder / "config.json").write_text(json.dumps({"activation_function": activation}))
    tensor = {"dtype": "F32", "shape": weight.shape, "data_offsets": [0, weight.nbytes]}
    header = json.dumps({"linear.weight": tensor}).encode()
    content = struct.pack("<Q", len(header)) + header + weight.tobytes()
    (folder / "model.safetensors").write_bytes(content)


class TestKinds:
    """Of models whose vectors of tokens would be wrong."""

    def kinds(self, path):
        return TokenModel(path, "CPU", {}).kinds

    def test_a_layer_that_is_missing_or_not_linear(self, tmp_path):
        embedding_model(tmp_path)
        dense_layer(tmp_path, np.eye(8, dtype=np.float32), "torch.nn.modules.activation.Tanh")
        assert self.kinds(tmp_path) == ("dense",)
        (tmp_path / "1_Dense/config.json").unlink()
        assert self.kinds(tmp_path) == ("dense",)

    def test_a_layer_of_texts_is_none_of_tokens(self, tmp_path):
        embedding_model(tmp_path)
        modules = [{"type": f"sentence_transformers.models.{n}"} for n in ("Pooling", "Dense")]
        (tmp_path / "modules.json").write_text(json.dumps(modules))
        assert self.kinds(tmp_path) == ("dense", "multi")

    def test_colbert_without_its_layer(self, tmp_path):
        embedding_model(tmp_path)
        (tmp_path / "config.json").write_text('{"architectures": ["HF_ColBERT"]}')
        assert self.kinds(tmp_path) == ("dense",)

    def test_sparse_vectors_of_another_making(self, tmp_path):
        sparse_model(tmp_path)
        module = {"type": "sentence_transformers.sparse_encoder.models.SpladePooling", "path": "1"}
        (tmp_path / "modules.json").write_text(json.dumps([module]))
        (tmp_path / "1").mkdir()
        (tmp_path / "1/config.json").write_text('{"pooling_strategy": "sum"}')
        with pytest.raises(EngineStartError, match="pooling_strategy 'sum'"):
            self.kinds(tmp_path)
