"""ONNX models that embed and rerank, in a plain installation."""

import json
from contextlib import asynccontextmanager

import numpy as np
import pytest

from onnx_models import embedding_onnx, rerank_onnx, write_word_piece
from penstock.engines.openvino.engine import OpenVINOEngine
from penstock.engines.openvino.model import source as module
from penstock.engines.openvino.model.source import find_model
from penstock.errors import EngineStartError
from penstock.types import EmbeddingRequest, RerankRequest
from word_models import CONTEXT, VOCABULARY, WORDS

OPTIONS = {"inference_precision": "f32", "num_threads": 1}


@asynccontextmanager
async def running(source):
    engine = OpenVINOEngine(source, engine_kwargs=OPTIONS)
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


@pytest.fixture(autouse=True)
def plain(tmp_path, monkeypatch):
    """A new cache, and no extra."""
    monkeypatch.setenv("PENSTOCK_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "find_spec", lambda name: None)


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "model"
    path.mkdir()
    return path


async def test_an_embedding_model(folder):
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 9}))
    async with running(embedding_onnx(folder, "onnx/model.onnx")) as engine:
        given = ["Réd, GREEN blue fox!", "dog", "[SEP] red"]
        found = await engine.embeddings(EmbeddingRequest(given))
        ids = await engine.tokenize("Fox  Hill zebra")
        back = await engine.detokenize(ids)
    assert found.vectors[0] == pytest.approx(np.array([1, 1, 1, 1, 0, 0, 0, 0]) / 2, abs=1e-5)
    assert np.argmax(found.vectors[1]) == WORDS.index("dog")
    assert ids == [VOCABULARY.index(name) for name in ("fox", "hill", "[UNK]")]
    assert back == "fox hill"
    assert engine.capabilities.context_length == 9
    assert found.usage.prompt_tokens == 8 + 3 + 4


async def test_a_rerank_model(folder):
    async with running(rerank_onnx(folder)) as engine:
        found = await engine.rerank(RerankRequest("green", ["red", "sea", "sea river"]))
    places = [VOCABULARY.index(word) - 8 for word in ("green", "red", "sea", "river")]
    green, red, sea, river = places
    logits = np.array([green + red, green + sea, green + sea + river])
    assert found.scores == pytest.approx(list(1 / (1 + np.exp(-logits))), abs=1e-4)


def test_it_is_read_once(folder, capfd):
    source = embedding_onnx(folder)
    first = find_model(source, None, None)
    assert find_model(source, None, None) == first
    assert first.task == "embed"
    assert first.context_length == CONTEXT
    assert capfd.readouterr().err.count("converting") == 1


class TestRefusals:
    def test_no_tokenizer(self, folder):
        embedding_onnx(folder)
        (folder / "tokenizer.json").unlink()
        with pytest.raises(EngineStartError, match=r"no tokenizer.json: copy"):
            find_model(str(folder), None, None)

    def test_another_kind_of_tokenizer_needs_the_extra(self, folder):
        source = embedding_onnx(folder)
        write_word_piece(folder, model={"type": "Unigram", "vocab": []})
        with pytest.raises(EngineStartError, match=r"Unigram.*penstock\[convert\]"):
            find_model(source, None, None)

    def test_a_language_model(self, folder):
        source = embedding_onnx(folder)
        (folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
        with pytest.raises(EngineStartError, match="embed or rerank"):
            find_model(source, None, None)

    def test_a_classifier_is_refused_before_it_is_read(self, folder, monkeypatch):
        monkeypatch.setattr(module, "run_python", lambda *_: pytest.fail("it was read"))
        source = rerank_onnx(folder)
        config = json.loads((folder / "config.json").read_bytes())
        config["id2label"] = {"0": "a", "1": "b", "2": "c"}
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(EngineStartError, match=r"has 3 labels \(a, b, c\)"):
            find_model(source, None, None)

    def test_a_weight_format(self, folder):
        with pytest.raises(EngineStartError, match="leave weight_format out"):
            find_model(embedding_onnx(folder), None, None, "int8")
