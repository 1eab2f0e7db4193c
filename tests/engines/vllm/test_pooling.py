"""Models that do not generate: embeddings and the scores from them, and classes."""

import math

import pytest

from penstock.demo import model_path
from penstock.engines.vllm.engine import VLLMEngine
from penstock.errors import RequestError, UnsupportedError
from penstock.testing import answer, chat_request
from penstock.types import ClassifyRequest, EmbeddingRequest, RerankRequest
from torch_models import classifier

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]

OPTIONS = {
    "runner": "pooling",
    "dtype": "float32",
    "enforce_eager": True,
    "kv_cache_memory_bytes": 64 << 20,
}
TEXTS = ["My Solara 77 arrived broken.", "Where is my invoice?", "My Solara 77 arrived broken."]


async def test_embeddings_and_scores():
    engine = VLLMEngine(
        str(model_path("huggingface")), engine_kwargs={**OPTIONS, "convert": "embed"}
    )
    await engine.start()
    try:
        made = await engine.embeddings(EmbeddingRequest(TEXTS))
        first, second, third = made.vectors
        assert math.isclose(math.hypot(*first), 1.0, rel_tol=1e-4)
        assert math.dist(first, third) < 1e-4 < math.dist(first, second)
        assert made.usage.prompt_tokens == sum([len(await engine.tokenize(text)) for text in TEXTS])
        assert engine.capabilities.vectors == ("dense", "multi")
        multi = await engine.embeddings(EmbeddingRequest(TEXTS, vectors="multi"))
        assert sum(map(len, multi.multi)) == multi.usage.prompt_tokens == made.usage.prompt_tokens
        assert multi.vectors == []
        assert all(abs(math.hypot(*one) - 1) < 1e-4 for text in multi.multi for one in text)
        with pytest.raises(UnsupportedError, match="the vllm engine makes dense and multi"):
            await engine.embeddings(EmbeddingRequest(TEXTS, vectors="sparse"))
        with pytest.raises(RequestError, match="Matryoshka") as refused:
            await engine.embeddings(EmbeddingRequest(TEXTS, dimensions=4))
        assert refused.value.param == "dimensions"  # by which a job knows an option of its own
        scores = await engine.rerank(RerankRequest(TEXTS[0], TEXTS[1:]))
        assert scores.scores[1] == pytest.approx(1.0, abs=1e-3)
        assert scores.scores == (await engine.score(RerankRequest(TEXTS[0], TEXTS[1:]))).scores
        assert scores.scores[0] == pytest.approx(
            sum(a * b for a, b in zip(first, second, strict=True)), abs=1e-3
        )
        with pytest.raises(UnsupportedError, match="vllm"):
            await answer(engine, chat_request("text"))
        with pytest.raises(UnsupportedError, match="classify"):
            await engine.classify(ClassifyRequest(["text"]))
    finally:
        await engine.stop()


async def test_classes(tmp_path):
    classifier(tmp_path, ["calm", "angry", "glad"])
    engine = VLLMEngine(str(tmp_path), engine_kwargs=OPTIONS)
    await engine.start()
    try:
        made = await engine.classify(ClassifyRequest(TEXTS))
        assert len(made.items) == 3
        for item in made.items:
            assert sum(item.probabilities) == pytest.approx(1.0, abs=1e-4)
            assert (
                item.label
                == ["calm", "angry", "glad"][item.probabilities.index(max(item.probabilities))]
            )
        assert made.items[0].probabilities == pytest.approx(made.items[2].probabilities, abs=1e-4)
        assert made.usage.prompt_tokens > 0
    finally:
        await engine.stop()


async def test_a_cross_encoder_scores(tmp_path):
    classifier(tmp_path, ["relevance"])
    engine = VLLMEngine(str(tmp_path), engine_kwargs=OPTIONS)
    await engine.start()
    try:
        assert {"score", "rerank"} <= engine.capabilities.tasks
        made = await engine.rerank(RerankRequest("What arrived?", TEXTS))
        assert made.scores[0] == pytest.approx(made.scores[2], abs=1e-4)
        assert made.scores[0] != pytest.approx(made.scores[1], abs=1e-4)
        assert made.usage.prompt_tokens > 0
        other = await engine.rerank(RerankRequest("Nothing at all.", TEXTS))
        assert other.scores[0] != pytest.approx(made.scores[0], abs=1e-4)  # it reads both texts
    finally:
        await engine.stop()
