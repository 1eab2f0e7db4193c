"""The contract of every engine: answers, tokens, refusals, many requests, adapters, its life."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar

import pytest

from penstock.engines.base import LLMEngine
from penstock.errors import (
    ContextLengthError,
    EngineDeadError,
    EngineError,
    ModelNotFoundError,
    RequestError,
    UnsupportedError,
)
from penstock.openai.responses import Answers
from penstock.testing.abilities import BeamSearch, Constraints, Decisions, Images, Videos
from penstock.testing.asking import (
    GREEDY,
    answer,
    chat_request,
    check_adapters_mix,
    deltas_of,
    endless,
    rest,
)
from penstock.types import (
    ChatRequest,
    ClassifyRequest,
    CompletionRequest,
    EmbeddingRequest,
    PredicateQuestion,
    RerankRequest,
    Sampling,
    SpeechRequest,
    TokenizeRequest,
    TranscriptionRequest,
)


@pytest.mark.asyncio(loop_scope="module")
class EngineContract(Decisions, Images, Videos, BeamSearch, Constraints):
    """Inherit, and provide a started engine as the module-scoped fixture `engine`.

    Greedy answers are compared with those of the same request among others, so start a real model
    in the engine's deterministic mode, or, where it has none, with a model that has no near ties.
    """

    adapters: ClassVar[dict[str, str]] = {}
    """Adapters to load, name to PEFT directory; each must change the answer to `prompt`."""

    async def kill(self, engine: LLMEngine) -> bool:
        """End the engine's process by force. Return False where that cannot be done."""
        return False

    @pytest.fixture(autouse=True)
    def _only_generating_engines(self, request: pytest.FixtureRequest, engine: LLMEngine) -> None:
        any_task = request.node.get_closest_marker("any_task")
        if "chat" not in engine.capabilities.tasks and not any_task:
            pytest.skip("the model does not generate")

    # Answers
    async def test_an_answer_has_text_reason_and_usage(self, engine: LLMEngine) -> None:
        deltas = await deltas_of(engine, chat_request(self.prompt))
        last = deltas[-1]
        assert last.finish_reason in ("stop", "length")
        assert all(delta.finish_reason is None for delta in deltas[:-1])
        assert all(delta.usage is None for delta in deltas[1:-1])
        assert last.usage is not None
        assert last.usage.prompt_tokens > 0
        assert last.usage.completion_tokens > 0
        if engine.capabilities.token_ids:
            assert last.usage.completion_tokens == sum(len(delta.token_ids) for delta in deltas)
        assert "".join(delta.text for delta in deltas)

    async def test_greedy_answers_repeat_and_do_not_depend_on_streaming(
        self, engine: LLMEngine
    ) -> None:
        streamed = await answer(engine, chat_request(self.prompt))
        whole = await deltas_of(engine, chat_request(self.prompt, stream=False))
        assert len(whole) == 1
        assert whole[0].text == streamed.texts[0]
        assert whole[0].finish_reason == streamed.reasons[0]

    async def test_max_tokens_is_kept_exactly(self, engine: LLMEngine) -> None:
        for limit in (1, 5):
            sampling = Sampling(temperature=0.0, max_tokens=limit, ignore_eos=True)
            result = await answer(engine, chat_request(self.prompt, sampling))
            assert result.reasons[0] == "length"
            assert result.usage.completion_tokens == limit

    async def test_min_tokens_and_ignore_eos_go_on(self, engine: LLMEngine) -> None:
        sampling = Sampling(temperature=0.0, max_tokens=80, ignore_eos=True)
        result = await answer(engine, chat_request(self.prompt, sampling))
        assert result.usage.completion_tokens == 80

    @pytest.mark.parametrize("stream", [True, False])
    async def test_stop_strings_end_the_text_before_them(
        self, engine: LLMEngine, stream: bool
    ) -> None:
        full = (await answer(engine, chat_request(self.prompt))).texts[0]
        stop = full[3:6]
        sampling = Sampling(temperature=0.0, max_tokens=24, stop=(stop,))
        result = await answer(engine, chat_request(self.prompt, sampling, stream=stream))
        assert result.texts[0] == full[: full.index(stop)]
        assert result.reasons[0] == "stop"

    async def test_one_seed_gives_one_answer_and_many_seeds_many(self, engine: LLMEngine) -> None:
        async def sampled(seed: int) -> str:
            sampling = Sampling(temperature=2.0, max_tokens=16, seed=seed, ignore_eos=True)
            return (await answer(engine, chat_request(self.prompt, sampling))).texts[0]

        assert await sampled(1) == await sampled(1)
        assert len({await sampled(seed) for seed in range(6)}) > 1

    async def test_penalties_and_filters_are_accepted(self, engine: LLMEngine) -> None:
        sampling = Sampling(
            max_tokens=8,
            temperature=0.7,
            top_p=0.9,
            top_k=20,
            min_p=0.01,
            seed=7,
            presence_penalty=0.5,
            frequency_penalty=0.5,
            repetition_penalty=1.1,
        )
        result = await answer(engine, chat_request(self.prompt, sampling))
        assert result.usage.completion_tokens > 0

    async def test_n_answers_come_under_their_index(self, engine: LLMEngine) -> None:
        sampling = Sampling(temperature=2.0, max_tokens=12, seed=5, ignore_eos=True)
        result = await answer(engine, chat_request(self.prompt, sampling, n=3))
        assert sorted(result.texts) == sorted(result.reasons) == [0, 1, 2]
        assert result.usage.completion_tokens == 36
        assert len(set(result.texts.values())) > 1

    async def test_logprobs_come_one_a_token(self, engine: LLMEngine) -> None:
        if engine.capabilities.max_top_logprobs < 0:
            pytest.skip("no log probabilities")
        sampling = Sampling(temperature=0.0, max_tokens=6, logprobs=1, ignore_eos=True)
        for stream in (True, False):
            result = await answer(engine, chat_request(self.prompt, sampling, stream=stream))
            assert len(result.logprobs[0]) == 6
            assert all(
                token.logprob is not None
                and token.logprob <= 0
                and token.top[0][1] == token.logprob
                for token in result.logprobs[0]
            )

    async def test_more_logprobs_than_the_engine_gives_are_refused(self, engine: LLMEngine) -> None:
        sampling = Sampling(max_tokens=4, logprobs=max(engine.capabilities.max_top_logprobs, 1) + 1)
        with pytest.raises(UnsupportedError, match=engine.name):
            await answer(engine, chat_request(self.prompt, sampling))

    # Plain completions and tokens
    async def test_completions_take_text_and_token_ids(self, engine: LLMEngine) -> None:
        ids = await engine.tokenize(self.prompt)
        assert await engine.detokenize(ids) == self.prompt
        by_ids = await answer(engine, CompletionRequest(ids, GREEDY))
        assert by_ids.usage.prompt_tokens == len(ids)
        by_text = await answer(engine, CompletionRequest(self.prompt, GREEDY))
        if by_text.usage.prompt_tokens == len(ids):  # no token was added in front
            assert by_text.texts == by_ids.texts

    async def test_token_ids_of_prompt_and_answer_come_where_they_are_wanted(
        self, engine: LLMEngine
    ) -> None:
        if "return_token_ids" not in engine.capabilities.extra:
            pytest.skip("no token ids of prompts")
        ids = await engine.tokenize(self.prompt)
        asked = {"return_token_ids": True}
        sampling = Sampling(max_tokens=4, seed=1, ignore_eos=True, extra=asked)
        for stream in (True, False):
            request = CompletionRequest(ids, sampling, n=2, stream=stream)
            deltas = await deltas_of(engine, request)
            firsts = [delta for delta in deltas if delta.prompt_token_ids is not None]
            assert sorted(delta.index for delta in firsts) == [0, 1]
            result = Answers(deltas)
            assert list(result.prompt_token_ids or ()) == ids
            assert [len(of_one) for of_one in result.token_ids.values()] == [4, 4]
        assert (await answer(engine, CompletionRequest(ids, GREEDY))).prompt_token_ids is None

    async def test_tokens_are_those_that_the_model_is_fed(self, engine: LLMEngine) -> None:
        for request in (chat_request(self.prompt), CompletionRequest(self.prompt, GREEDY)):
            fed = await answer(engine, request)
            asked = (
                TokenizeRequest(chat=request)
                if isinstance(request, ChatRequest)
                else TokenizeRequest(self.prompt, special_tokens=True)
            )
            assert len((await engine.tokens(asked)).ids) == fed.usage.prompt_tokens
        named = await engine.tokens(TokenizeRequest(self.prompt, names=True))
        assert named.ids == await engine.tokenize(self.prompt)
        assert named.names is not None
        assert len(named.names) == len(named.ids)
        assert (await engine.tokenizer_info()).chat_template

    async def test_echo_puts_the_prompt_first(self, engine: LLMEngine) -> None:
        plain = await answer(engine, CompletionRequest(self.prompt, GREEDY))
        echoed = await answer(engine, CompletionRequest(self.prompt, GREEDY, echo=True))
        assert echoed.texts[0] == self.prompt + plain.texts[0]

    async def test_text_survives_characters_of_several_tokens(self, engine: LLMEngine) -> None:
        text = "Grüße, 世界 🙂 naïve"
        assert await engine.detokenize(await engine.tokenize(text)) == text

    # Refusals
    @pytest.mark.parametrize(
        ("param", "value"),
        [
            ("temperature", -1.0),
            ("temperature", 9.0),
            ("top_p", 0.0),
            ("top_k", -3),
            ("min_p", 2.0),
            ("max_tokens", 0),
            ("presence_penalty", 3.0),
            ("frequency_penalty", -3.0),
            ("repetition_penalty", 0.0),
            ("stop", ("",)),
        ],
    )
    async def test_values_out_of_range_name_their_parameter(
        self, engine: LLMEngine, param: str, value: Any
    ) -> None:
        with pytest.raises(RequestError) as caught:
            await answer(engine, chat_request(self.prompt, Sampling(**{param: value})))
        assert caught.value.param == param
        assert caught.value.status == 400

    async def test_a_prompt_that_does_not_fit_the_context_is_refused(
        self, engine: LLMEngine
    ) -> None:
        length = engine.capabilities.context_length
        with pytest.raises(ContextLengthError, match=str(length)):
            await answer(engine, chat_request("word " * (length + 10)))

    async def test_an_answer_is_cut_to_what_the_context_leaves(self, engine: LLMEngine) -> None:
        length, (token, *_) = engine.capabilities.context_length, await engine.tokenize("a")
        sampling = Sampling(max_tokens=2 * length, ignore_eos=True)
        cut = await answer(engine, CompletionRequest([token] * (length - 32), sampling))
        assert cut.reasons == {0: "length"}
        assert cut.usage.completion_tokens <= 32

    async def test_token_ids_out_of_range_are_refused(self, engine: LLMEngine) -> None:
        with pytest.raises(RequestError):
            await answer(engine, CompletionRequest([1, 10**9], GREEDY))
        with pytest.raises(RequestError):
            await engine.detokenize([1, 10**9])

    async def test_an_empty_prompt_is_refused(self, engine: LLMEngine) -> None:
        with pytest.raises(RequestError):
            await answer(engine, CompletionRequest([], GREEDY))

    async def test_what_the_engine_cannot_do_is_a_refusal_that_names_it(
        self, engine: LLMEngine
    ) -> None:
        calls: dict[str, Callable[[], Awaitable[object]]] = {
            "embeddings": lambda: engine.embeddings(EmbeddingRequest(["text"])),
            "rerank": lambda: engine.rerank(RerankRequest("query", ["text"])),
            "classify": lambda: engine.classify(ClassifyRequest(["text"])),
            "transcriptions": lambda: engine.transcriptions(TranscriptionRequest(b"")),
            "speech": lambda: engine.speech(SpeechRequest("text")),
            "decide": lambda: engine.decide(self._decide(PredicateQuestion("It is broken."))),
        }
        for task, call in calls.items():
            if task not in engine.capabilities.tasks:
                with pytest.raises(UnsupportedError, match=engine.name) as caught:
                    await call()
                assert caught.value.status == 400

    async def test_embeddings_follow_their_options_or_refuse_them(self, engine: LLMEngine) -> None:
        if "embeddings" not in engine.capabilities.tasks:
            pytest.skip("no embeddings")
        whole = (await engine.embeddings(EmbeddingRequest(["text"]))).vectors[0]
        asked = {
            "dimensions": EmbeddingRequest(["text"], len(whole) // 2),
            "input_type": EmbeddingRequest(["text"], input_type="query"),
        }
        for param, request in asked.items():
            answered = await asyncio.gather(engine.embeddings(request), return_exceptions=True)
            if isinstance(answered[0], RequestError):
                assert answered[0].param == param
            else:
                assert answered[0].vectors[0] != whole  # type: ignore[union-attr]
        packed = await engine.embeddings(EmbeddingRequest(["text"], packed=True))
        vector = packed.vectors or [list(struct.unpack(f"<{len(whole)}f", packed.packed))]
        assert vector[0] == pytest.approx(whole, rel=1e-6)
        length = engine.capabilities.context_length
        long = ["word " * (length + 10)]
        with pytest.raises(ContextLengthError):
            await engine.embeddings(EmbeddingRequest(long))
        try:
            cut = await engine.embeddings(EmbeddingRequest(long, truncate=True))
        except ContextLengthError:
            return  # this engine does not cut
        assert cut.usage.prompt_tokens <= length

    # Many at once
    async def test_more_requests_than_slots_all_get_their_own_answer(
        self, engine: LLMEngine
    ) -> None:
        count = min(engine.capabilities.max_concurrency * 2, 300)
        limits = [2 + number % 7 for number in range(count)]
        samplings = [Sampling(temperature=0.0, max_tokens=limit) for limit in limits]
        requests = [
            chat_request(self.prompt, sampling, stream=limit % 2 == 0)
            for limit, sampling in zip(limits, samplings, strict=True)
        ]
        results = await asyncio.gather(*(answer(engine, request) for request in requests))
        eight = Sampling(temperature=0.0, max_tokens=8)
        longest = (await answer(engine, chat_request(self.prompt, eight))).texts[0]
        for limit, result in zip(limits, results, strict=True):
            assert longest.startswith(result.texts[0])
            assert result.usage.completion_tokens <= limit

    async def test_a_shared_prefix_is_found_in_the_cache(self, engine: LLMEngine) -> None:
        if not engine.capabilities.prefix_caching:
            pytest.skip("no prefix cache")
        text = self.prompt * 4
        first = await answer(engine, chat_request(text))
        again = await answer(engine, chat_request(text))
        assert again.usage.cached_tokens > first.usage.prompt_tokens // 2
        assert again.texts == first.texts

    async def test_a_caller_who_leaves_frees_the_slot(self, engine: LLMEngine) -> None:
        for _ in range(engine.capabilities.max_concurrency + 2):
            stream = engine.chat(endless(engine, self.prompt))
            async with contextlib.aclosing(stream):
                async for _ in stream:
                    break
        assert (await answer(engine, chat_request(self.prompt))).reasons[0] in ("stop", "length")

    async def test_a_cancelled_task_ends_as_cancelled(self, engine: LLMEngine) -> None:
        task = asyncio.create_task(answer(engine, endless(engine, self.prompt)))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await answer(engine, chat_request(self.prompt))).texts[0]

    # Adapters
    async def test_adapters_mix_with_the_base_model(self, engine: LLMEngine) -> None:
        if not self.adapters:
            pytest.skip("no adapters given")
        for adapter, path in self.adapters.items():
            await engine.resolve_lora(adapter, path)
        await check_adapters_mix(engine, self.prompt, self.adapters)

    async def test_an_unknown_adapter_is_a_404(self, engine: LLMEngine) -> None:
        with pytest.raises(ModelNotFoundError) as caught:
            await answer(engine, chat_request(self.prompt, adapter="nobody"))
        assert caught.value.status == 404

    async def test_an_adapter_that_is_not_there_never_reaches_the_engine(
        self, engine: LLMEngine
    ) -> None:
        if not self.adapters:
            pytest.skip("no adapters given")
        with pytest.raises(ModelNotFoundError, match="no directory"):
            await engine.resolve_lora("ghost", "/nowhere/at/all")
        assert (await answer(engine, chat_request(self.prompt))).texts[0]

    # Life; these come last, as they restart the engine
    async def test_starting_twice_is_harmless(self, engine: LLMEngine) -> None:
        await engine.start()
        await engine.check_health()

    async def test_a_killed_engine_says_so_at_once_and_starts_again(
        self, engine: LLMEngine
    ) -> None:
        stream = engine.chat(endless(engine, self.prompt))
        async with contextlib.aclosing(stream):
            await anext(stream)
            if not await self.kill(engine):
                pytest.skip("no way to kill this engine was given")
            with pytest.raises(EngineDeadError):
                await rest(stream)
        with pytest.raises(EngineError):
            await engine.check_health()
        await engine.start()
        assert (await answer(engine, chat_request(self.prompt))).texts[0]

    async def test_stopping_ends_what_runs_and_starting_begins_anew(
        self, engine: LLMEngine
    ) -> None:
        stream = engine.chat(endless(engine, self.prompt))
        async with contextlib.aclosing(stream):
            await anext(stream)
            await engine.stop()
            with pytest.raises(EngineDeadError):
                await rest(stream)
        await engine.stop()
        with pytest.raises(EngineDeadError):
            await answer(engine, chat_request(self.prompt))
        await engine.start()
        assert (await answer(engine, chat_request(self.prompt))).texts[0]
