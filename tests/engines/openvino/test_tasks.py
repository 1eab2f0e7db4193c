"""Embedding and rerank, on models so small that the right answers are known (`word_models`)."""

import asyncio
import json
import random
from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from openvino import opset13 as ops

from penstock.engines.openvino.engine import OpenVINOEngine
from penstock.engines.openvino.options import OpenVINOOptions
from penstock.engines.openvino.rerank import Rerank
from penstock.engines.openvino.tasks import Embedding
from penstock.engines.process import Call, Failed, Reply
from penstock.errors import (
    ContextLengthError,
    EngineError,
    EngineStartError,
    RequestError,
    UnsupportedError,
)
from penstock.testing import chat_request
from penstock.types import (
    CompletionRequest,
    EmbeddingRequest,
    Embeddings,
    RerankRequest,
    TranscriptionRequest,
)
from word_models import (
    CONTEXT,
    VOCABULARY,
    WORDS,
    causal_model,
    embedding_model,
    parameter,
    positional_model,
    rerank_model,
    word_vectors,
    write_model,
)

OPTIONS = {"inference_precision": "f32", "num_threads": 1}


def sigmoid(x):
    return pytest.approx(1 / (1 + np.exp(-x)), abs=1e-5)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def embedder(tmp_path_factory):
    engine = OpenVINOEngine(
        embedding_model(tmp_path_factory.mktemp("embed")), engine_kwargs=OPTIONS
    )
    await engine.start()
    yield engine
    await engine.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def reranker(tmp_path_factory):
    engine = OpenVINOEngine(rerank_model(tmp_path_factory.mktemp("rerank")), engine_kwargs=OPTIONS)
    await engine.start()
    yield engine
    await engine.stop()


async def test_an_option_of_language_models_is_refused(tmp_path):
    options = {**OPTIONS, "default_chat_template_kwargs": {"a": 1}}
    engine = OpenVINOEngine(embedding_model(tmp_path), engine_kwargs=options)
    with pytest.raises(EngineStartError, match="takes no default_chat_template_kwargs"):
        await engine.start()


async def test_more_tokens_than_a_model_has_positions_for_are_refused_at_once(tmp_path):
    model = embedding_model(tmp_path)
    engine = OpenVINOEngine(model, engine_kwargs={**OPTIONS, "max_model_len": CONTEXT + 1})
    with pytest.raises(EngineStartError, match=f"more than the {CONTEXT} positions"):
        await engine.start()


@pytest.mark.asyncio(loop_scope="module")
class TestEmbedding:
    async def embed(self, engine, *inputs, **options):
        return await engine.embeddings(EmbeddingRequest(list(inputs), **options))

    async def test_vectors_come_in_the_order_of_the_inputs(self, embedder):
        result = await self.embed(embedder, "red green blue fox", "dog", "red red")
        assert np.argmax(result.vectors[1]) == WORDS.index("dog")
        assert np.argmax(result.vectors[2]) == WORDS.index("red")
        assert result.vectors[0] == pytest.approx([0.5] * 4 + [0] * 4, abs=1e-5)

    async def test_tokens_are_counted_with_the_special_ones(self, embedder):
        assert (await self.embed(embedder, "red green", "fox")).usage.prompt_tokens == 4 + 3

    async def test_token_ids_are_read_as_they_are(self, embedder):
        red, sea = (VOCABULARY.index(word) for word in ("red", "sea"))
        text = await self.embed(embedder, "red sea")
        ids = await self.embed(embedder, [2, red, sea, 3])
        mixed = await self.embed(embedder, [sea], "dog", [red])
        assert ids.vectors[0] == pytest.approx(text.vectors[0], abs=1e-6)
        assert ids.usage.prompt_tokens == text.usage.prompt_tokens == 4
        assert [VOCABULARY[4 + int(np.argmax(vector))] for vector in mixed.vectors] == [
            "sea",
            "dog",
            "red",
        ]
        assert mixed.usage.prompt_tokens == 1 + 3 + 1

    @pytest.mark.parametrize("wrong", [None, 1.5, {"a": 1}, ["a"], [1.5], [True], [None]], ids=repr)
    async def test_what_is_no_text_is_refused_and_harms_nobody(self, embedder, wrong):
        other = asyncio.create_task(self.embed(embedder, "dog"))
        with pytest.raises(RequestError) as caught:
            await self.embed(embedder, "fox", wrong)
        assert caught.value.param == "input[1]"
        assert len((await other).vectors) == 1

    async def test_a_bad_option_harms_nobody(self, embedder):
        other = asyncio.create_task(self.embed(embedder, "dog"))
        with pytest.raises(EngineError):
            await self.embed(embedder, "fox", dimensions="2")
        assert len((await other).vectors) == 1
        assert len((await self.embed(embedder, "dog")).vectors) == 1

    async def test_token_ids_of_another_vocabulary_are_refused(self, embedder):
        with pytest.raises(RequestError, match=f"from 0 to {len(VOCABULARY) - 1}"):
            await self.embed(embedder, "red", [len(VOCABULARY)])
        with pytest.raises(ContextLengthError):
            await self.embed(embedder, [4] * (CONTEXT + 1))

    async def test_a_vector_does_not_depend_on_its_neighbours(self, embedder):
        alone = await self.embed(embedder, "red sea")
        beside = await self.embed(embedder, "green " * 12, "red sea")
        assert beside.vectors[1] == pytest.approx(alone.vectors[0], abs=1e-6)

    async def test_fewer_dimensions_are_cut_and_normalized_again(self, embedder):
        result = await self.embed(embedder, "red green sea", dimensions=2)
        assert result.vectors == [pytest.approx([0.5**0.5] * 2, abs=1e-5)]

    async def test_vectors_come_packed_where_they_may(self, embedder):
        asked = ["red green sea", "dog"]
        for dimensions in (None, 2):
            plain = await self.embed(embedder, *asked, dimensions=dimensions)
            packed = await self.embed(embedder, *asked, dimensions=dimensions, packed=True)
            assert (packed.vectors, packed.usage) == ([], plain.usage)
            assert packed.packed == np.array(plain.vectors, "<f4").tobytes()

    async def test_empty_texts_harm_nobody(self, tmp_path):
        task = Embedding(embedding_model(tmp_path), OpenVINOOptions(num_threads=1), CONTEXT)
        rows = {"input_ids": np.zeros((1, 0), int), "attention_mask": np.zeros((1, 0), int)}
        encoded = SimpleNamespace(**{n: SimpleNamespace(data=data) for n, data in rows.items()})
        task._tokenizer = SimpleNamespace(encode=lambda texts, **_: encoded)
        calls = [Call(1, "embed", [["", ""], None, None, False, "dense", False])]
        (failed,) = task.begin_embeddings(calls)
        assert failed.message == "input[0] is empty"

    @pytest.mark.parametrize("pooling", ["cls", "last_token", "mean"])
    async def test_the_pooling_is_that_of_the_option(self, tmp_path, pooling):
        options = {**OPTIONS, "embedding_pooling": pooling, "embedding_normalize": False}
        engine = OpenVINOEngine(embedding_model(tmp_path), engine_kwargs=options)
        await engine.start()
        try:
            ids = [VOCABULARY.index(word) for word in ("fox", "red", "dog")]
            found = await self.embed(engine, ids, ids[:2])
        finally:
            await engine.stop()
        each = np.eye(len(VOCABULARY))[ids, 4:]
        pooled = {"cls": each[0], "last_token": each[2], "mean": each.mean(axis=0)}[pooling]
        assert found.vectors[0] == pytest.approx(pooled, abs=1e-6)
        last = {"cls": each[0], "last_token": each[1], "mean": each[:2].mean(axis=0)}[pooling]
        assert found.vectors[1] == pytest.approx(last, abs=1e-6)

    async def test_a_graph_without_states_of_tokens_is_refused_by_name(self, tmp_path):
        embedding_model(tmp_path)
        inputs = [parameter("input_ids"), parameter("attention_mask")]
        mean = ops.reduce_mean(word_vectors(inputs[0]), ops.constant(1))
        write_model(tmp_path, "BertModel", inputs, mean, "sentence_embedding")
        engine = OpenVINOEngine(str(tmp_path), engine_kwargs=OPTIONS)
        with pytest.raises(
            EngineStartError, match=r"openvino_model\.xml' gives no states of tokens"
        ):
            await engine.start()

    @pytest.mark.parametrize("dimensions", [0, len(WORDS) + 1])
    async def test_dimensions_that_the_model_does_not_have(self, embedder, dimensions):
        with pytest.raises(RequestError, match="8 dimensions"):
            await self.embed(embedder, "red", dimensions=dimensions)

    async def test_a_long_text_is_refused_and_not_cut(self, embedder):
        with pytest.raises(ContextLengthError, match=r"16 tokens; input\[1\] has 17"):
            await self.embed(embedder, "red", "red " * 15)
        assert (await self.embed(embedder, "red " * 14)).usage.prompt_tokens == 16

    async def test_truncate_embeds_the_beginning(self, embedder):
        cut = await self.embed(embedder, "red " * 15 + "sea", [4] * 20, truncate=True)
        assert cut.vectors[0] == pytest.approx([1] + [0] * 7, abs=1e-5)
        assert np.argmax(cut.vectors[1]) == 0
        assert cut.usage.prompt_tokens == 2 * CONTEXT

    async def test_an_input_type_without_instruction_is_refused(self, embedder):
        with pytest.raises(RequestError, match="query_instruction"):
            await self.embed(embedder, "red", input_type="query")

    async def test_a_call_that_is_given_up_leaves_the_others(self, embedder):
        calls = [asyncio.ensure_future(self.embed(embedder, *WORDS * 40)) for _ in range(3)]
        await asyncio.sleep(0)
        calls[1].cancel()
        await asyncio.wait(calls)
        assert calls[1].cancelled()
        assert calls[0].result().vectors == calls[2].result().vectors
        assert len((await self.embed(embedder, "red")).vectors) == 1

    async def test_no_inputs(self, embedder):
        with pytest.raises(RequestError, match="nothing to embed"):
            await self.embed(embedder)

    async def test_requests_that_arrive_together_have_answers_of_their_own(self, embedder):
        requests = [
            self.embed(embedder, word, dimensions=n) for word in WORDS for n in (None, 8, 99)
        ]
        results = await asyncio.gather(*requests, return_exceptions=True)
        for at, result in enumerate(results):
            if at % 3 == 2:
                assert isinstance(result, RequestError)
            else:
                assert isinstance(result, Embeddings)
                assert np.argmax(result.vectors[0]) == at // 3

    async def test_instructions_go_before_texts(self, tmp_path):
        model = embedding_model(tmp_path)
        prompts = {"prompts": {"query": "red sea "}, "default_prompt_name": None}
        (tmp_path / "config_sentence_transformers.json").write_text(json.dumps(prompts))
        (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": 8}')
        options = {**OPTIONS, "document_instruction": "hill "}
        engine = OpenVINOEngine(model, engine_kwargs=options)
        await engine.start()
        try:
            plain = await self.embed(engine, "red sea dog", "hill dog", "dog")
            query = await self.embed(engine, "dog", input_type="query")
            document = await self.embed(engine, "dog", input_type="document")
            assert [query.vectors[0], document.vectors[0]] == plain.vectors[:2]
            assert query.usage.prompt_tokens == 5
            with pytest.raises(RequestError, match="before texts"):
                await self.embed(engine, [4], input_type="query")
            assert engine.capabilities.context_length == 8
        finally:
            await engine.stop()

    async def test_a_model_that_reads_positions_gets_them(self, tmp_path):
        """GenAI's own pipeline would leave them as they are in memory."""
        options = {**OPTIONS, "embedding_normalize": False}
        engine = OpenVINOEngine(positional_model(tmp_path), engine_kwargs=options)
        await engine.start()
        texts = ["sea", "red sea", "red green blue fox sea"]
        found = np.array((await engine.embeddings(EmbeddingRequest(texts))).vectors)
        short = (await engine.embeddings(EmbeddingRequest(texts, dimensions=2))).vectors
        await engine.stop()
        for vector, text in zip(found, texts, strict=True):
            words = text.split()
            wanted = [words.index(w) + 1 if w in words else 0 for w in WORDS]
            assert vector * (len(words) + 2) == pytest.approx(wanted, abs=1e-5)
        assert np.allclose(short, found[:, :2])

    async def test_the_last_token_where_the_tokenizer_pads_at_the_left(self, tmp_path):
        options = {**OPTIONS, "embedding_normalize": False}
        engine = OpenVINOEngine(causal_model(tmp_path), engine_kwargs=options)
        await engine.start()
        texts = ["sea", "red green blue fox sea"]
        found = (await engine.embeddings(EmbeddingRequest(texts))).vectors
        await engine.stop()
        for vector, text in zip(found, texts, strict=True):
            assert vector == pytest.approx([float(word in text.split()) for word in WORDS])

    async def test_texts_are_brought_to_lower_case_where_the_model_was_made_so(self, tmp_path):
        model = embedding_model(tmp_path)
        (tmp_path / "sentence_bert_config.json").write_text('{"do_lower_case": true}')
        prompts = {"prompts": {"query": "DOG "}}
        (tmp_path / "config_sentence_transformers.json").write_text(json.dumps(prompts))
        engine = OpenVINOEngine(model, engine_kwargs=OPTIONS)
        await engine.start()
        plain = await engine.embeddings(EmbeddingRequest(["Red FOX", "red fox"]))
        asked = await engine.embeddings(EmbeddingRequest(["RED", "dog red"], input_type="query"))
        await engine.stop()
        assert plain.vectors[0] == plain.vectors[1]
        assert plain.vectors[0][WORDS.index("fox")] > 0.5
        assert [round(asked.vectors[0][WORDS.index(word)], 3) for word in ("dog", "red")] == [
            0.707,
            0.707,
        ]

    async def test_capabilities(self, embedder):
        assert embedder.capabilities.tasks == {"embeddings", "tokenize", "detokenize"}
        assert embedder.capabilities.context_length == CONTEXT

    async def test_what_it_cannot_do_is_named_with_engine_and_kind(self, embedder):
        with pytest.raises(
            UnsupportedError, match="openvino engine does not support chat with an embedding model"
        ):
            await anext(embedder.chat(chat_request("red")))
        with pytest.raises(UnsupportedError, match="completions with an embedding model"):
            await anext(embedder.completions(CompletionRequest("red")))
        with pytest.raises(UnsupportedError, match="rerank with an embedding model"):
            await embedder.rerank(RerankRequest("red", ["red"]))
        with pytest.raises(UnsupportedError, match="transcriptions with an embedding model"):
            await embedder.transcriptions(TranscriptionRequest(b""))
        with pytest.raises(UnsupportedError, match="reset_prefix_cache with an embedding model"):
            await embedder.reset_prefix_cache()
        await embedder.check_health()

    async def test_adapters_are_refused(self, embedder, tmp_path):
        (tmp_path / "adapter_config.json").write_text('{"r": 8, "lora_alpha": 16}')
        (tmp_path / "adapter_model.safetensors").write_bytes(b"")
        with pytest.raises(UnsupportedError, match="LoRA adapters with an embedding model"):
            await embedder.resolve_lora("a", str(tmp_path))

    async def test_tokenize_and_back(self, embedder):
        ids = await embedder.tokenize("fox hill")
        assert ids == [VOCABULARY.index("fox"), VOCABULARY.index("hill")]
        assert await embedder.detokenize(ids) == "foxhill"
        assert await embedder.tokenize("") == []
        assert await embedder.detokenize([]) == ""
        with pytest.raises(RequestError, match="token ids"):
            await embedder.detokenize([len(VOCABULARY)])


def test_a_large_call_does_not_hold_up_a_small_one(tmp_path):
    options = OpenVINOOptions(inference_precision="f32", num_threads=1)
    task = Embedding(embedding_model(tmp_path), options, CONTEXT)
    words = WORDS * 250
    assert not task.begin_embeddings([Call(1, "embed", [words, None, None, False, "dense", False])])
    assert task.step() == ([], [])  # a round of its first texts has begun
    assert not task.begin_embeddings(
        [Call(2, "embed", [["dog"], None, None, False, "dense", False])]
    )
    answers: list[Any] = []
    while task.busy:
        answers += task.step()[1]
    assert [answer.id for answer in answers] == [2, 1]
    small, large = ([int(np.argmax(v)) for v in answer.value.vectors] for answer in answers)
    assert small == [WORDS.index("dog")]
    assert large == list(range(len(WORDS))) * 250


def test_a_call_is_answered_while_the_next_run_goes_on(tmp_path, monkeypatch):
    task = Embedding(embedding_model(tmp_path), OpenVINOOptions(deterministic=True), CONTEXT)
    begun, begin = list[Any](), task._model.begin

    def noted(texts):
        begun.append(texts)
        begin(texts)

    monkeypatch.setattr(task._model, "begin", noted)
    calls = [Call(n, "embed", [["dog"], None, None, False, "dense", False]) for n in (1, 2)]
    assert not task.begin_embeddings(calls)
    assert (task.step()[1], len(begun)) == ([], 1)
    assert ([answer.id for answer in task.step()[1]], len(begun)) == ([1], 2)
    assert [answer.id for answer in task.step()[1]] == [2]
    assert not task.busy


def test_a_run_that_fails_fails_its_calls_alone(tmp_path, monkeypatch):
    task = Embedding(embedding_model(tmp_path), OpenVINOOptions(deterministic=True), CONTEXT)
    begin, left = task._model.begin, [False, True]

    def begun(texts):
        if not left.pop(0):
            raise MemoryError("no memory")
        begin(texts)

    monkeypatch.setattr(task._model, "begin", begun)
    calls = [Call(n, "embed", [["dog"], None, None, False, "dense", False]) for n in (1, 2)]
    assert not task.begin_embeddings(calls)
    answers: list[Any] = []
    while task.busy:
        answers += task.step()[1]
    assert [(type(answer), answer.id) for answer in answers] == [(Failed, 1), (Reply, 2)]


class FaultyModel:
    """A model whose vectors are the first id of a text and its length. It fails now and then, and
    takes no run before the one under way was waited for.
    """

    vector_width = 2

    def __init__(self, draw):
        self._draw = draw
        self._texts: Any = None

    def begin(self, texts):
        self._fail()
        assert self._texts is None
        self._texts = texts

    def pooled(self):
        texts, self._texts = self._texts, None
        self._fail()
        return np.array([[ids[0], len(ids)] for ids in texts], np.float32)

    def states(self, texts):
        self._fail()
        return [np.full((len(ids), 2), ids[0], np.float32) for ids in texts]

    def vectors(self, states, *_):
        return states

    def _fail(self):
        if self._draw.random() < 0.05:
            raise MemoryError("no memory")


def test_each_call_is_answered_once_whatever_fails_or_is_given_up(tmp_path, monkeypatch):
    task = Embedding(embedding_model(tmp_path), OpenVINOOptions(num_threads=1), CONTEXT)
    for seed in range(10):
        draw = random.Random(seed)
        monkeypatch.setattr(task, "_model", FaultyModel(draw))
        calls: dict[int, list[list[int]]] = {}
        answered, given_up = Counter[int](), set[int]()
        while len(calls) < 20 or task.busy:
            if len(calls) < 20 and draw.random() < 0.5:
                number, count = len(calls) + 1, draw.choice([1, 2, 300])
                calls[number] = [[draw.randint(1, 9)] * draw.randint(1, 8) for _ in range(count)]
                kind = draw.choice(["dense", "dense", "multi", "sparse"])
                asked = [calls[number], None, None, False, kind, False]
                assert not task.begin_embeddings([Call(number, "embed", asked)])
            if calls and draw.random() < 0.2:
                task.abort(number := draw.choice(list(calls)))
                given_up |= {number} - answered.keys()
            for answer in task.step()[1]:
                answered[answer.id] += 1
                if isinstance(answer, Reply) and answer.value.vectors:
                    wanted = [[ids[0], len(ids)] for ids in calls[answer.id]]
                    assert answer.value.vectors == wanted
        assert answered == Counter(calls.keys() - given_up)


@pytest.mark.asyncio(loop_scope="module")
class TestRerank:
    async def test_scores_come_in_the_order_of_the_documents(self, reranker):
        documents = ["dog", "blue red", "hill sea river dog dog dog", "red fox green"]
        result = await reranker.rerank(RerankRequest("red blue green", documents))
        assert result.scores == [sigmoid(0), sigmoid(2), sigmoid(0), sigmoid(2)]
        assert result.usage.prompt_tokens == sum(3 + 3 + len(d.split()) for d in documents)

    async def test_score_is_the_same(self, reranker):
        request = RerankRequest("red", ["red", "blue"])
        assert await reranker.score(request) == await reranker.rerank(request)

    async def test_a_long_pair_is_refused_and_not_cut(self, reranker):
        with pytest.raises(ContextLengthError, match=r"16 tokens; documents\[1\] has 17"):
            await reranker.rerank(RerankRequest("red", ["red", "red " * 13]))

    async def test_no_documents(self, reranker):
        with pytest.raises(RequestError, match="no documents"):
            await reranker.rerank(RerankRequest("red", []))

    async def test_calls_take_turns_and_may_be_given_up(self, tmp_path):
        model = Rerank(str(rerank_model(tmp_path)), OpenVINOOptions(num_threads=1), CONTEXT)
        model.begin_rerank(Call(1, "rerank", ["red", ["red"] * 1000]))
        model.begin_rerank(Call(2, "rerank", ["red", []]))
        model.begin_rerank(Call(3, "rerank", ["red", ["blue"]]))
        answers = [answer for _ in range(3) for answer in model.step()[1]]
        assert [(answer.id, type(answer)) for answer in answers] == [(2, Failed), (3, Reply)]
        assert model.busy
        model.abort(1)
        assert not model.busy

    async def test_capabilities(self, reranker):
        assert reranker.capabilities.tasks == {"score", "rerank", "tokenize", "detokenize"}
        with pytest.raises(UnsupportedError, match="chat with a rerank model"):
            await anext(reranker.chat(chat_request("red")))

    async def test_a_tokenizer_without_token_types_is_refused_at_the_start(self, tmp_path):
        engine = OpenVINOEngine(rerank_model(tmp_path, token_types=False), engine_kwargs=OPTIONS)
        with pytest.raises(EngineStartError, match="token_type_ids into model_input_names"):
            await engine.start()
