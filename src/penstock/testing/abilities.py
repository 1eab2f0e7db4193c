"""Contracts of abilities that an engine may declare: constraints, beams, images, videos, vectors of
images, decisions, hearing, speaking.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, ClassVar

import jsonschema_rs
import pytest
from msgspec import structs

from penstock.engines.base import LLMEngine
from penstock.errors import RequestError, UnsupportedError
from penstock.openai.media.images import part_with
from penstock.openai.responses import Answers
from penstock.testing.asking import (
    PATIENCE,
    Asked,
    answer,
    chat_request,
    deltas_of,
    film,
    image_request,
    noise,
)
from penstock.types import (
    ChatRequest,
    ChoiceQuestion,
    CompletionRequest,
    DecideRequest,
    EmbeddingRequest,
    Embeddings,
    Option,
    PredicateQuestion,
    Question,
    Sampling,
    ScoreQuestion,
    SpeechRequest,
    StructuredOutput,
    Transcription,
    TranscriptionRequest,
)


class Constraints(Asked):
    """Tests of constraints, of the kinds that the engine declares."""

    schema: ClassVar[Mapping[str, Any]] = {
        "type": "object",
        "properties": {"kind": {"enum": ["a", "b"]}, "sure": {"type": "boolean"}},
        "required": ["kind", "sure"],
        "additionalProperties": False,
    }
    """A JSON Schema that the model can follow."""

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


class BeamSearch(Asked):
    """Tests of beam search."""

    async def test_beams_come_whole_and_the_best_first(self, engine: LLMEngine) -> None:
        _needs_beams(engine)
        for stream in (True, False):
            deltas = await deltas_of(engine, _search(self.prompt, 4, stream=stream))
            assert [delta.index for delta in deltas] == [0, 1, 2, 3]
        found = Answers(deltas)
        assert len({tuple(ids) for ids in found.token_ids.values()}) == 4
        assert found.usage.completion_tokens == sum(map(len, found.token_ids.values()))
        if engine.capabilities.prompt_logprobs:
            ids = list(found.prompt_token_ids or ())
            scores = [await _score(engine, ids, found.token_ids[index]) for index in range(4)]
            assert all(one > next_one - 1e-3 for one, next_one in pairwise(scores))
            greedy = await answer(engine, _search(self.prompt, 1))
            assert await _score(engine, ids, greedy.token_ids[0]) <= scores[0] + 1e-3

    async def test_fewer_answers_than_beams_are_the_best_ones(self, engine: LLMEngine) -> None:
        _needs_beams(engine)
        of_all = await answer(engine, _search(self.prompt, 6))
        best = await answer(engine, _search(self.prompt, 2, best_of=6))
        assert best.token_ids == {index: of_all.token_ids[index] for index in range(2)}

    async def test_one_beam_is_greedy(self, engine: LLMEngine) -> None:
        _needs_beams(engine)
        greedy = await answer(engine, chat_request(self.prompt, Sampling(12, temperature=0.0)))
        assert (await answer(engine, _search(self.prompt, 1))).texts == greedy.texts

    async def test_searches_and_others_do_not_disturb_each_other(self, engine: LLMEngine) -> None:
        _needs_beams(engine)
        requests = [
            _search(self.prompt, 3),
            chat_request(self.prompt),
            _search(self.prompt + " Now!", 4, num_beam_groups=2, diversity_penalty=1.0),
            _search(self.prompt, 2, length_penalty=0.0, early_stopping=True),
            chat_request(self.prompt + " Now!"),
        ]
        alone = [(await answer(engine, request)).texts for request in requests]
        given_up = [asyncio.create_task(answer(engine, request)) for request in requests]
        assert (await answer(engine, requests[1])).texts == alone[1]
        for task in given_up:
            task.cancel()
        mixed = await asyncio.gather(*(answer(engine, request) for request in requests * 3))
        assert [found.texts for found in mixed] == alone * 3
        assert [(await answer(engine, request)).texts for request in requests] == alone

    async def test_what_does_not_go_with_beams_is_refused(self, engine: LLMEngine) -> None:
        _needs_beams(engine)
        request = _search(self.prompt, 4)
        refused = structs.replace(request.sampling, stop=("a",), temperature=0.5)
        with pytest.raises(UnsupportedError, match="stop and temperature"):
            await answer(engine, structs.replace(request, sampling=refused))


def _search(text: str, n: int, *, stream: bool = False, **more: Any) -> ChatRequest:
    extra = {"use_beam_search": True, "return_token_ids": True, **more}
    return chat_request(text, Sampling(max_tokens=12, extra=extra), n=n, stream=stream)


async def _score(engine: LLMEngine, prompt: list[int], ids: list[int]) -> float:
    """The mean log probability of an answer's tokens, read as part of a prompt."""
    sampling = Sampling(max_tokens=1, temperature=0.0, prompt_logprobs=0)
    read = await answer(engine, CompletionRequest(prompt + ids, sampling, stream=False))
    scored = read.prompt_logprobs[0][-len(ids) :]
    return sum(token.logprob or 0.0 for token in scored) / len(ids)


def _needs_beams(engine: LLMEngine) -> None:
    if "use_beam_search" not in engine.capabilities.extra:
        pytest.skip("no beam search")


class Images(Asked):
    """Tests of images in conversations."""

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

    async def test_an_engine_that_makes_vectors_of_texts_refuses_images_by_its_name(
        self, engine: LLMEngine
    ) -> None:
        if "embeddings" not in engine.capabilities.tasks:
            pytest.skip("no embeddings")
        chat = image_request(self.prompt, [noise(1)])
        with pytest.raises(UnsupportedError, match=f"the {engine.name} engine .* not of images"):
            await engine.embeddings(EmbeddingRequest([chat]))


class Videos(Asked):
    """Tests of videos in conversations."""

    async def test_videos_are_seen_beside_images_and_texts(self, engine: LLMEngine) -> None:
        if "video" not in engine.capabilities.inputs:
            pytest.skip("no videos")
        one, other, still = film(1, 2, 3, 4), film(4, 3, 2, 1), noise(5)
        asked = [
            chat_request(self.prompt),
            *(image_request(self.prompt, [*shown]) for shown in ([one], [other], [one, still])),
            *(image_request(self.prompt, [*shown]) for shown in ([one, other], [other, one])),
        ]
        alone = [await answer(engine, request) for request in asked]
        assert len({result.texts[0] for result in alone}) == len(asked)
        tokens = [result.usage.prompt_tokens for result in alone]
        assert tokens[0] < tokens[1] == tokens[2] < tokens[3]
        assert tokens[2] < tokens[4] == tokens[5]
        together = await asyncio.gather(*(answer(engine, request) for request in asked * 3))
        assert [result.texts for result in together] == [result.texts for result in alone] * 3

    async def test_an_engine_that_sees_no_videos_refuses_them_by_its_name(
        self, engine: LLMEngine
    ) -> None:
        if "text" not in engine.capabilities.inputs or "video" in engine.capabilities.inputs:
            pytest.skip("it sees them, or leaves that to a server")
        with pytest.raises(RequestError, match=r"video|multimodal"):
            await answer(engine, image_request(self.prompt, [film(1, 2)]))


def _needs_images(engine: LLMEngine) -> None:
    if "image" not in engine.capabilities.inputs:
        pytest.skip("no images")


class Decisions(Asked):
    """Tests of the probabilities of options, and of bad questions."""

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


def _needs_decisions(engine: LLMEngine) -> None:
    if "decide" not in engine.capabilities.tasks:
        pytest.skip("no decisions")


@pytest.mark.asyncio(loop_scope="module")
class TranscriptionContract:
    """What every engine that transcribes keeps. A subclass's module has the fixture `engine` of
    `EngineContract`; `recording` gives a recording in which the model hears something.
    """

    def recording(self) -> bytes:
        raise NotImplementedError

    async def _heard(self, engine: LLMEngine, **options: Any) -> Transcription:
        request = TranscriptionRequest(self.recording(), max_tokens=16, **options)
        return await asyncio.wait_for(engine.transcriptions(request), PATIENCE)

    async def test_a_recording_becomes_text(self, engine: LLMEngine) -> None:
        first, *others = await asyncio.gather(*(self._heard(engine) for _ in range(4)))
        assert first.text
        assert all(other.text == first.text for other in others)

    async def test_times_come_where_they_are_asked_for(self, engine: LLMEngine) -> None:
        assert (await self._heard(engine)).segments is None
        found = await self._heard(engine, timestamps=True)
        if found.segments is not None:
            assert all(0 <= segment.start <= segment.end for segment in found.segments)

    @pytest.mark.parametrize(
        ("param", "value"),
        [("prompt", "the quick brown fox"), ("hotwords", "fox"), ("words", True)],
    )
    async def test_options_are_followed_or_refused(
        self, engine: LLMEngine, param: str, value: Any
    ) -> None:
        with contextlib.suppress(UnsupportedError):
            found = await self._heard(engine, **{param: value})
            assert param != "words" or found.words is not None

    async def test_what_is_no_recording_is_refused(self, engine: LLMEngine) -> None:
        for audio in (b"", b"<html>", b"RIFF\x24\0\0\0WAVE", b"ID3" + bytes(200)):
            with pytest.raises(RequestError):
                await engine.transcriptions(TranscriptionRequest(audio))
        assert (await self._heard(engine)).text


@pytest.mark.asyncio(loop_scope="module")
class SpeechContract:
    """What every engine that speaks keeps. A subclass's module has the fixture `engine` of
    `EngineContract`.
    """

    async def test_a_text_becomes_sound(self, engine: LLMEngine) -> None:
        request = SpeechRequest("the quick brown fox")
        first, second = await asyncio.gather(engine.speech(request), engine.speech(request))
        assert first == second
        assert len(first.pcm) > first.rate // 10
        assert len(first.pcm) % 2 == 0
        assert any(first.pcm)

    async def test_what_cannot_be_spoken_is_refused(self, engine: LLMEngine) -> None:
        with pytest.raises(RequestError):
            await engine.speech(SpeechRequest(""))
        with pytest.raises(RequestError) as caught:
            await engine.speech(SpeechRequest("a fox", "no such voice"))
        assert caught.value.param == "voice"


@pytest.mark.asyncio(loop_scope="module")
class ImageVectorContract:
    """What every engine that embeds images and texts keeps. A subclass's module has the fixture
    `engine` of `EngineContract`.
    """

    async def _embedded(self, engine: LLMEngine, *inputs: str | ChatRequest) -> Embeddings:
        return await asyncio.wait_for(engine.embeddings(EmbeddingRequest(inputs)), PATIENCE)

    async def test_it_says_that_it_sees(self, engine: LLMEngine) -> None:
        assert {"text", "image"} <= set(engine.capabilities.inputs)

    async def test_images_texts_and_both_have_vectors_of_their_own(self, engine: LLMEngine) -> None:
        one, other = noise(1), noise(2, 48, 64)
        inputs: list[str | ChatRequest] = ["a cat", "a dog"]
        inputs += [_shown(one), _shown(other), _shown(one, other), _shown(other, one)]
        inputs += [_shown(one, text="a cat")]
        each = [await self._embedded(engine, given) for given in inputs]
        vectors = [found.vectors[0] for found in each]
        for number, vector in enumerate(vectors):
            assert all(_distance(vector, before) > 1e-3 for before in vectors[:number])
        together = await self._embedded(engine, *inputs)
        for vector, alone in zip(together.vectors, vectors, strict=True):
            assert _distance(vector, alone) < 1e-4
        tokens = [found.usage.prompt_tokens for found in each]
        assert together.usage.prompt_tokens == sum(tokens)
        assert tokens[0] < tokens[6]
        assert max(tokens[2:4]) < tokens[4] == tokens[5]
        again = await asyncio.gather(*(self._embedded(engine, given) for given in inputs * 2))
        for found, alone in zip(again, vectors * 2, strict=True):
            assert _distance(found.vectors[0], alone) < 1e-4

    async def test_a_bad_image_is_refused_and_harms_nobody(self, engine: LLMEngine) -> None:
        good = _shown(noise(1))
        alone = (await self._embedded(engine, good)).vectors[0]
        cut, path = noise(1)[: len(noise(1)) // 8 * 4], "/etc/passwd"
        beside = [asyncio.create_task(self._embedded(engine, good, "a")) for _ in range(3)]
        for image in ("data:image/png;base64,aGVsbG8=", "data:image/png;base64,%", cut, path):
            with pytest.raises(RequestError) as caught:
                await self._embedded(engine, "a cat", _shown(noise(2), image))
            assert caught.value.status == 400
        for found in await asyncio.gather(*beside):
            assert _distance(found.vectors[0], alone) < 1e-4


def _shown(*images: str, text: str = "") -> ChatRequest:
    parts = [*map(part_with, images), *([{"type": "text", "text": text}] if text else [])]
    return ChatRequest([{"role": "user", "content": parts}])


def _distance(one: Sequence[float], other: Sequence[float]) -> float:
    """The largest difference of two vectors' numbers."""
    return max(abs(a - b) for a, b in zip(one, other, strict=True))
