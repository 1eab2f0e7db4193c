"""Embedding, rerank and speech-to-text, on models so small that the right answers are known
(`word_models`).
"""

import asyncio
import io
import json
import wave
from types import SimpleNamespace

import numpy as np
import pytest
import pytest_asyncio

from penstock.engines.openvino import OpenVINOEngine, tasks
from penstock.engines.openvino.options import OpenVINOOptions
from penstock.engines.openvino.tasks import SAMPLE_RATE, read_wav
from penstock.errors import ContextLengthError, EngineStartError, RequestError, UnsupportedError
from penstock.testing import chat_request
from penstock.types import (
    CompletionRequest,
    EmbeddingRequest,
    Embeddings,
    RerankRequest,
    TranscriptionRequest,
)
from word_models import CONTEXT, VOCABULARY, WORDS, embedding_model, rerank_model, write_tokenizer

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

    async def test_capabilities(self, reranker):
        assert reranker.capabilities.tasks == {"score", "rerank", "tokenize", "detokenize"}
        with pytest.raises(UnsupportedError, match="chat with a rerank model"):
            await anext(reranker.chat(chat_request("red")))

    async def test_a_tokenizer_without_token_types_is_refused_at_the_start(self, tmp_path):
        engine = OpenVINOEngine(rerank_model(tmp_path, token_types=False), engine_kwargs=OPTIONS)
        with pytest.raises(EngineStartError, match="token_type_ids into model_input_names"):
            await engine.start()


def wav(samples, rate=16_000, channels=1, width=2):
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(channels)
        out.setsampwidth(width)
        out.setframerate(rate)
        out.writeframes(np.asarray(samples).astype(f"<i{width}").tobytes())
    return file.getvalue()


class TestSpeech:
    @pytest.fixture
    def speech(self, monkeypatch, tmp_path):
        """A `Speech` whose pipeline writes down what it was asked."""

        class Pipeline:
            multilingual = True

            def __init__(self, *args, **kwargs):
                pass

            def get_generation_config(self):
                languages = {"<|en|>": 1, "<|de|>": 2} if self.multilingual else {}
                return SimpleNamespace(
                    lang_to_id=languages,
                    is_multilingual=self.multilingual,
                    language=None,
                    task=None,
                )

            def generate(self, samples, config):
                metrics = SimpleNamespace(get_num_generated_tokens=lambda: 7)
                text = f" {config.task} {config.language} {config.max_new_tokens}"
                parts = [
                    SimpleNamespace(start_ts=0.0, end_ts=0.1, text=" a"),
                    SimpleNamespace(start_ts=0.1, end_ts=-1, text="b"),
                ]
                chunks = [parts] if config.return_timestamps else None
                return SimpleNamespace(
                    texts=[text], perf_metrics=metrics, chunks=chunks, languages=["<|de|>"]
                )

        monkeypatch.setattr("openvino_genai.ASRPipeline", Pipeline)
        write_tokenizer(tmp_path, token_types=False)
        return tasks.Speech(str(tmp_path), OpenVINOOptions(), 448)

    def test_language_and_task_reach_the_model(self, speech):
        result = speech.transcribe(wav([0] * 3200), "de", "translate", 20)
        assert result.text == "translate <|de|> 20"
        assert result.usage.completion_tokens == 7

    def test_the_language_is_found_out_unless_given(self, speech):
        result = speech.transcribe(wav([0] * 3200), None, "transcribe", 20)
        assert result.text == "transcribe None 20"
        assert result.language == "de"

    def test_timestamps_come_when_they_are_asked_for(self, speech):
        audio = wav([0] * 3200)
        assert speech.transcribe(audio, "en", "transcribe", 20).segments is None
        result = speech.transcribe(audio, "en", "transcribe", 20, True)
        assert (result.duration, result.language) == (0.2, "en")
        assert [(s.start, s.end, s.text) for s in result.segments] == [
            (0.0, 0.1, "a"),
            (0.1, 0.2, "b"),
        ]

    def test_an_unknown_language(self, speech):
        with pytest.raises(RequestError, match="'xx'; it knows de, en"):
            speech.transcribe(wav([0]), "xx", "transcribe", None)

    @pytest.mark.parametrize(("seconds", "bound"), [(1, 440), (30, 440), (31, 880)])
    def test_the_decoder_stays_within_its_positions(self, speech, seconds, bound):
        audio = wav(np.zeros(16_000 * seconds))
        for wanted in (None, 9999):
            assert speech.transcribe(audio, "en", "transcribe", wanted).text.endswith(f" {bound}")

    def test_an_english_model_only_writes_english_down(self, speech):
        speech._pipeline.multilingual = False
        assert speech.transcribe(wav([0]), "en", "transcribe", 5).text == "None None 5"
        for language, task in (("de", "transcribe"), (None, "translate")):
            with pytest.raises(RequestError, match="English"):
                speech.transcribe(wav([0]), language, task, None)


def tone(hertz, rate, seconds=0.5):
    return 8192 * np.sin(2 * np.pi * hertz * np.arange(int(rate * seconds)) / rate)


def test_samples_are_scaled():
    samples = read_wav(wav([0, 16384, -32768] + [0] * 2000))
    assert samples.dtype == np.float32
    assert samples[:3].tolist() == [0, 0.5, -1]


def test_channels_are_mixed():
    both = np.column_stack([tone(440, 16_000), np.zeros(8000)])
    assert read_wav(wav(both, channels=2)) == pytest.approx(
        read_wav(wav(tone(440, 16_000) / 2)), abs=1e-4
    )


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000])
def test_other_rates_give_the_same_sound(rate):
    samples = read_wav(wav(tone(440, rate), rate))
    middle = slice(800, -800)
    assert samples[middle] == pytest.approx(read_wav(wav(tone(440, 16_000)))[middle], abs=5e-3)


def test_what_the_lower_rate_cannot_carry_is_gone():
    assert np.abs(read_wav(wav(tone(15_000, 48_000), 48_000))[800:-800]).max() < 5e-3


def test_a_click_is_padded_with_silence():
    assert len(read_wav(wav([1]))) == SAMPLE_RATE // 10


@pytest.mark.parametrize(
    ("audio", "why"),
    [
        (b"", "ends too early"),
        (b"ID3 this is no WAV file, but music", "RIFF"),
        (wav([]), "no samples"),
        (wav([1, 2, 3], width=4), "32-bit"),
    ],
)
def test_other_formats_are_refused(audio, why):
    with pytest.raises(RequestError, match=f"{why}.*send a WAV file with 16-bit PCM"):
        read_wav(audio)
