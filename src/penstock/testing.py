"""The contract that every engine keeps, as a test class to inherit. Needs pytest, pytest-asyncio.

    @pytest_asyncio.fixture(scope="module", loop_scope="module")
    async def engine():
        engine = MyEngine("model")
        await engine.start()
        yield engine
        await engine.stop()

    class TestMyEngine(EngineContract): ...

Tests of abilities that the engine does not declare are skipped. Give `adapters` to have adapters
tested, and `kill` to have the engine's death tested. `SimulatedOptions` has faults and latencies.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import re
import zlib
from base64 import b64encode
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Protocol

import jsonschema_rs
import pytest

from penstock.engines.base import LLMEngine
from penstock.engines.tasks import Deltas
from penstock.errors import (
    ContextLengthError,
    EngineDeadError,
    EngineError,
    ModelNotFoundError,
    RequestError,
    UnsupportedError,
)
from penstock.openai.responses import Answers
from penstock.types import (
    ChatRequest,
    ChoiceQuestion,
    ClassifyRequest,
    CompletionRequest,
    DecideRequest,
    Delta,
    EmbeddingRequest,
    Option,
    PredicateQuestion,
    Question,
    RerankRequest,
    Sampling,
    ScoreQuestion,
    StructuredOutput,
    TokenizeRequest,
    TranscriptionRequest,
)

GREEDY = Sampling(temperature=0.0, max_tokens=24)
PATIENCE = 60.0
"""Seconds after which a request that should have ended counts as hanging."""


def chat_request(text: str, sampling: Sampling = GREEDY, **fields: Any) -> ChatRequest:
    """A conversation of one user message."""
    return ChatRequest([{"role": "user", "content": text}], sampling, **fields)


def image_request(
    text: str, images: Sequence[str], sampling: Sampling = GREEDY, **fields: Any
) -> ChatRequest:
    """A conversation of one user message: images, as data URIs, and a text."""
    parts: list[dict[str, Any]] = [
        {"type": "image_url", "image_url": {"url": image}} for image in images
    ]
    parts.append({"type": "text", "text": text})
    return ChatRequest([{"role": "user", "content": parts}], sampling, **fields)


def noise(seed: int, width: int = 64, height: int = 48) -> str:
    """A PNG of coloured noise as a data URI, the same for the same seed."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return len(data).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")

    source = random.Random(seed)
    rows = b"".join(b"\0" + source.randbytes(3 * width) for _ in range(height))
    size = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    file = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", size + b"\x08\x02\0\0\0")
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )
    return f"data:image/png;base64,{b64encode(file).decode()}"


class Generates(Protocol):
    """What answers conversations and prompts: an engine, or a server in front of one."""

    def chat(self, request: ChatRequest) -> Deltas: ...

    def completions(self, request: CompletionRequest) -> Deltas: ...


async def deltas_of(
    engine: Generates, request: ChatRequest | CompletionRequest, *, patience: float = PATIENCE
) -> list[Delta]:
    """All deltas of a request. Fails after `patience` seconds (default 60)."""
    stream = (
        engine.chat(request) if isinstance(request, ChatRequest) else engine.completions(request)
    )
    return await _rest(stream, patience)


async def answer(
    engine: Generates, request: ChatRequest | CompletionRequest, *, patience: float = PATIENCE
) -> Answers:
    """The finished answers of a request. Fails after `patience` seconds (default 60)."""
    answers = Answers()
    for delta in await deltas_of(engine, request, patience=patience):
        answers.add(delta)
    return answers


async def check_adapters_mix(engine: LLMEngine, prompt: str, names: Iterable[str]) -> None:
    """Assert that the base model and adapters `names` answer the same side by side as alone."""
    longer = Sampling(temperature=0.0, max_tokens=80)
    each = [None, *names]
    alone = {
        name: await answer(engine, chat_request(prompt, longer, adapter=name)) for name in each
    }
    assert len({result.texts[0] for result in alone.values()}) == len(each)
    mixed = await asyncio.gather(
        *(answer(engine, chat_request(prompt, longer, adapter=name)) for name in each * 5)
    )
    for name, result in zip(each * 5, mixed, strict=True):
        assert result.texts == alone[name].texts


async def count_right(
    engine: LLMEngine, asked: Sequence[tuple[str, str | None, str]], sampling: Sampling = GREEDY
) -> dict[str | None, int]:
    """Ask all (prompt, adapter, expected answer) at once. Returns the right answers by adapter."""
    patience = PATIENCE + len(asked)  # each waits for the others
    requests = [chat_request(text, sampling, adapter=name, stream=False) for text, name, _ in asked]
    replies = await asyncio.gather(
        *(answer(engine, request, patience=patience) for request in requests)
    )
    right: dict[str | None, int] = {name: 0 for _, name, _ in asked}
    for (_, name, expected), reply in zip(asked, replies, strict=True):
        right[name] += reply.texts[0] == expected
    return right


@pytest.mark.asyncio(loop_scope="module")
class EngineContract:
    """Inherit, and provide a started engine as the module-scoped fixture `engine`.

    Greedy answers are compared with those of the same request among others, so start a real model
    in the engine's deterministic mode, or, where it has none, with a model that has no near ties.
    """

    adapters: ClassVar[dict[str, str]] = {}
    """Adapters to load, name to PEFT directory; each must change the answer to `prompt`."""

    prompt: ClassVar[str] = "My Solara 77 arrived broken and nobody answers. I want my money back!"
    """A text to which the model gives an answer of several tokens."""

    schema: ClassVar[Mapping[str, Any]] = {
        "type": "object",
        "properties": {"kind": {"enum": ["a", "b"]}, "sure": {"type": "boolean"}},
        "required": ["kind", "sure"],
        "additionalProperties": False,
    }
    """A JSON Schema that the model can follow."""

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
            told = [delta for delta in deltas if delta.prompt_token_ids is not None]
            assert sorted(delta.index for delta in told) == [0, 1]
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

    # Constraints
    async def test_json_schema_is_obeyed(self, engine: LLMEngine) -> None:
        _needs(engine, "json_schema")
        # JSON may hold white space without end, and a model without a clue may choose that: so
        # several tries.
        constraint = StructuredOutput("json_schema", json.dumps(self.schema))
        sampling = Sampling(temperature=1.0, seed=3, max_tokens=200, structured=constraint)
        result = await answer(engine, chat_request(self.prompt, sampling, n=8))
        ended = [json.loads(result.texts[n]) for n in result.texts if result.reasons[n] == "stop"]
        assert ended
        for value in ended:
            assert jsonschema_rs.is_valid(dict(self.schema), value)

    async def test_required_calls_follow_the_definitions_of_their_own_tool(
        self, engine: LLMEngine
    ) -> None:
        _needs(engine, "json_schema")
        tools = [_tool("left", ["l", "e"]), _tool("right", ["r", "i"])]
        schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in tools}
        limit = Sampling(temperature=0.0, max_tokens=100)
        for choice in ("required", {"type": "function", "function": {"name": "right"}}):
            asked = chat_request(self.prompt, limit, tools=tools, tool_choice=choice)
            found = await answer(engine, asked)
            (call, *_) = found.tool_calls[0]
            assert choice == "required" or call.name == "right"
            if found.reasons[0] != "length":  # it may be full of white space
                assert jsonschema_rs.is_valid(schemas[call.name], json.loads(call.arguments))

    async def test_regex_is_obeyed(self, engine: LLMEngine) -> None:
        _needs(engine, "regex")
        sampling = Sampling(
            temperature=0.0, max_tokens=50, structured=StructuredOutput("regex", "[ab]{3}-[0-9]{2}")
        )
        result = await answer(engine, chat_request(self.prompt, sampling))
        assert re.fullmatch("[ab]{3}-[0-9]{2}", result.texts[0])

    async def test_a_grammar_is_obeyed(self, engine: LLMEngine) -> None:
        _needs(engine, "grammar")
        constraint = StructuredOutput("grammar", 'root ::= pair+ "."\npair ::= [a-c] "-"\n')
        sampling = Sampling(temperature=1.0, seed=3, max_tokens=200, structured=constraint)
        result = await answer(engine, chat_request(self.prompt, sampling, n=4))
        assert all(re.fullmatch(r"([a-c]-)+\.?", text) for text in result.texts.values())

    async def test_a_broken_constraint_is_refused_and_harms_nobody(self, engine: LLMEngine) -> None:
        _needs(engine, "json_schema")
        alone = await answer(engine, chat_request(self.prompt))
        kinds = engine.capabilities.structured
        broken = [
            StructuredOutput("json_schema", '{"type": "objet"}'),
            StructuredOutput("json_schema", "{"),
        ]
        if "regex" in kinds:
            broken += [StructuredOutput("regex", "[a"), StructuredOutput("regex", r"(a)\1")]
        if "grammar" in kinds:
            broken += [StructuredOutput("grammar", "root ::= missing")]
        neighbours = [
            asyncio.create_task(answer(engine, chat_request(self.prompt))) for _ in range(3)
        ]
        for constraint in broken:
            sampling = Sampling(max_tokens=9, structured=constraint)
            with pytest.raises(RequestError):
                await answer(engine, chat_request(self.prompt, sampling))
        for neighbour in await asyncio.gather(*neighbours):
            assert neighbour.texts == alone.texts
        assert (await answer(engine, chat_request(self.prompt))).texts == alone.texts

    # Images
    async def test_images_are_seen_in_their_order_and_beside_texts(self, engine: LLMEngine) -> None:
        _needs_images(engine)
        one, other = noise(1), noise(2, 48, 64)
        asked = [
            chat_request(self.prompt),
            *(image_request(self.prompt, images) for images in ([one], [other])),
            *(image_request(self.prompt, images) for images in ([one, other], [other, one])),
        ]
        alone = [await answer(engine, request) for request in asked]
        assert len({result.texts[0] for result in alone}) == len(asked)
        tokens = [result.usage.prompt_tokens for result in alone]
        assert tokens[0] < min(tokens[1:3]) <= max(tokens[1:3]) < tokens[3] == tokens[4]
        together = await asyncio.gather(*(answer(engine, request) for request in asked * 3))
        assert [result.texts for result in together] == [result.texts for result in alone] * 3

    async def test_a_bad_image_is_refused_and_harms_nobody(self, engine: LLMEngine) -> None:
        _needs_images(engine)
        good = image_request(self.prompt, [noise(1)])
        alone = await answer(engine, good)
        cut, path = noise(1)[: len(noise(1)) // 8 * 4], "/etc/passwd"
        beside = [asyncio.create_task(answer(engine, good)) for _ in range(3)]
        for image in ("data:image/png;base64,aGVsbG8=", "data:image/png;base64,%", cut, path):
            with pytest.raises(RequestError) as caught:
                await answer(engine, image_request(self.prompt, [noise(2), image]))
            assert caught.value.status == 400
        assert {result.texts[0] for result in await asyncio.gather(*beside)} == {alone.texts[0]}

    async def test_an_engine_without_eyes_refuses_images_by_its_name(
        self, engine: LLMEngine
    ) -> None:
        if "text" not in engine.capabilities.inputs or "image" in engine.capabilities.inputs:
            pytest.skip("it sees, or leaves that to a server")
        with pytest.raises(RequestError, match=r"image|multimodal"):
            await answer(engine, image_request(self.prompt, [noise(1)]))

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
            stream = engine.chat(_endless(engine, self.prompt))
            async with contextlib.aclosing(stream):
                async for _ in stream:
                    break
        assert (await answer(engine, chat_request(self.prompt))).reasons[0] in ("stop", "length")

    async def test_a_cancelled_task_ends_as_cancelled(self, engine: LLMEngine) -> None:
        task = asyncio.create_task(answer(engine, _endless(engine, self.prompt)))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await answer(engine, chat_request(self.prompt))).texts[0]

    # Decisions
    def _decide(self, *questions: Question) -> DecideRequest:
        return DecideRequest(self.prompt, questions)

    async def test_each_option_has_a_probability(self, engine: LLMEngine) -> None:
        _needs_decisions(engine)
        labels = ("refund", "repair", "repair at home", "no answer")
        options = tuple(map(Option, labels))
        levels = tuple(Option(str(value), value=value) for value in range(1, 6))
        asked = self._decide(
            PredicateQuestion("The customer is angry.", "angry"),
            ChoiceQuestion("What is wanted?", options, "wanted"),
            ChoiceQuestion("What fits?", options, "fits", several=True),
            ScoreQuestion("How urgent is it?", levels, "urgency"),
        )
        found = await engine.decide(asked)
        angry, wanted, fits, urgency = found.items
        assert [one.name for one in found.items] == ["angry", "wanted", "fits", "urgency"]
        assert angry.value is (angry.probabilities[0] >= 0.5)
        assert wanted.value == labels[wanted.probabilities.index(max(wanted.probabilities))]
        likely = [x for x, p in zip(labels, fits.probabilities, strict=True) if p >= 0.5]
        assert fits.value == likely
        expected = sum(p * value for value, p in enumerate(urgency.probabilities, 1))
        assert urgency.value == pytest.approx(expected)
        for one in (angry, wanted, urgency):
            assert sum(one.probabilities) == pytest.approx(1, abs=1e-6)
        for one in found.items:
            assert all(0 <= p <= 1 for p in one.probabilities)
            assert 0 < one.mass <= 1
        assert found.usage.prompt_tokens > 0

    async def test_the_order_of_options_and_other_questions_change_no_probability(
        self, engine: LLMEngine
    ) -> None:
        _needs_decisions(engine)
        options = tuple(map(Option, ("refund", "repair", "repair at home")))
        # Without instructions the options are not listed.
        forth, back = ChoiceQuestion("", options), ChoiceQuestion("", options[::-1])
        other = PredicateQuestion("It is about a device.")
        alone = (await engine.decide(self._decide(forth))).items[0]
        many = [self._decide(back, other), self._decide(other, forth)] * 3
        for asked, found in zip(many, await asyncio.gather(*map(engine.decide, many)), strict=True):
            place = asked.questions.index(other) ^ 1
            same = found.items[place].probabilities[:: -1 if place == 0 else 1]
            assert same == pytest.approx(alone.probabilities, abs=1e-3)

    async def test_a_bad_question_is_refused_by_name(self, engine: LLMEngine) -> None:
        _needs_decisions(engine)
        good = PredicateQuestion("It is broken.")
        a, b = Option("a"), Option("b")
        bad: dict[str, tuple[Question, ...]] = {
            "1 to 400": (),
            "not 401": (good,) * 401,
            "'kind'": (good, ChoiceQuestion("Which?", (), "kind")),
            "'twice'": (ChoiceQuestion("Which?", (a, b, a), "twice"),),
            "'empty'": (ChoiceQuestion("Which?", (a, Option(" ")), "empty"),),
            "'same'": (good, ChoiceQuestion("", (a, b), "same"), PredicateQuestion("", "same")),
        }
        for name, questions in bad.items():
            with pytest.raises(RequestError, match=name) as caught:
                await engine.decide(self._decide(*questions))
            assert caught.value.status == 400

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
        stream = engine.chat(_endless(engine, self.prompt))
        async with contextlib.aclosing(stream):
            await anext(stream)
            if not await self.kill(engine):
                pytest.skip("no way to kill this engine was given")
            with pytest.raises(EngineDeadError):
                await _rest(stream)
        with pytest.raises(EngineError):
            await engine.check_health()
        await engine.start()
        assert (await answer(engine, chat_request(self.prompt))).texts[0]

    async def test_stopping_ends_what_runs_and_starting_begins_anew(
        self, engine: LLMEngine
    ) -> None:
        stream = engine.chat(_endless(engine, self.prompt))
        async with contextlib.aclosing(stream):
            await anext(stream)
            await engine.stop()
            with pytest.raises(EngineDeadError):
                await _rest(stream)
        await engine.stop()
        with pytest.raises(EngineDeadError):
            await answer(engine, chat_request(self.prompt))
        await engine.start()
        assert (await answer(engine, chat_request(self.prompt))).texts[0]


async def _rest(stream: Deltas, patience: float = PATIENCE) -> list[Delta]:
    async with asyncio.timeout(patience):
        return [delta async for delta in stream]


def _needs_images(engine: LLMEngine) -> None:
    if "image" not in engine.capabilities.inputs:
        pytest.skip("no images")


def _needs_decisions(engine: LLMEngine) -> None:
    if "decide" not in engine.capabilities.tasks:
        pytest.skip("no decisions")


def _endless(engine: LLMEngine, prompt: str) -> ChatRequest:
    """A request with an answer of half the context."""
    most = engine.capabilities.context_length // 2
    return chat_request(prompt, Sampling(temperature=0.0, max_tokens=most, ignore_eos=True))


def _tool(name: str, words: list[str]) -> dict[str, Any]:
    """A tool whose definitions refer to each other, as clients make them of nested classes."""
    item = {"properties": {"word": {"$ref": "#/$defs/Word"}}, "required": ["word"]}
    parameters = {
        "properties": {"one": {"$ref": "#/$defs/Item"}},
        "required": ["one"],
        "$defs": {"Item": item, "Word": {"enum": words}},
    }
    function = {"name": name, "parameters": parameters, "strict": True}
    return {"type": "function", "function": function}


def _needs(engine: LLMEngine, kind: str) -> None:
    if kind not in engine.capabilities.structured:
        pytest.skip(f"no {kind} constraint")
