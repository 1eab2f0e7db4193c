"""Transcriptions by a Whisper with random weights."""

import asyncio
from typing import Any, NamedTuple

import pytest
import pytest_asyncio

from penstock.engines.media.audio import window_listener
from penstock.engines.openvino.engine import OpenVINOEngine
from penstock.engines.openvino.speech import heard_once, sounding
from penstock.errors import ContextLengthError, RequestError, UnsupportedError
from penstock.testing import TranscriptionContract
from penstock.types import TranscriptionRequest
from speech_models import OPTIONS, hearing_model, recording


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return hearing_model(tmp_path_factory.mktemp("model"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(model):
    engine = OpenVINOEngine(model, engine_kwargs={**OPTIONS, "max_audio_seconds": 200})
    await engine.start()
    yield engine
    await engine.stop()


async def heard(engine, audio=None, **options: Any):
    options = {"language": "en", "max_tokens": 8, **options}
    return await engine.transcriptions(TranscriptionRequest(audio or recording(), **options))


class TestContract(TranscriptionContract):
    def recording(self):
        return recording(1.0)


@pytest.mark.asyncio(loop_scope="module")
class TestHearing:
    async def test_capabilities(self, engine):
        assert engine.capabilities.tasks == {"transcriptions", "tokenize", "detokenize"}

    async def test_the_language_is_found_out_unless_given(self, engine):
        assert (await heard(engine, language=None)).language in ("en", "de")
        assert (await heard(engine, language="de")).language == "de"

    async def test_what_is_asked_reaches_the_model(self, engine):
        texts = {
            (await heard(engine, **options)).text
            for options in (
                {},
                {"language": "de"},
                {"task": "translate"},
                {"prompt": "quick brown"},
                {"hotwords": "lazy dog"},
            )
        }
        assert len(texts) >= 4

    async def test_a_long_recording_is_heard_in_windows_with_continuous_times(self, engine):
        told = []
        token = window_listener.set(lambda window, part: told.append((window, part.text)))
        try:
            found = await heard(engine, recording(70), max_tokens=24, timestamps=True)
        finally:
            window_listener.reset(token)
        assert [window for window, _ in told] == [0, 1, 2]
        assert found.text == " ".join(filter(None, (text for _, text in told)))
        assert found.duration == pytest.approx(70)
        starts = [segment.start for segment in found.segments]
        assert starts == sorted(starts)
        assert found.segments[-1].start > 55
        assert all(one.start <= one.end <= 70 for one in found.segments)

    async def test_times_with_room_for_one_token_come_to_an_end(self, engine):
        found = await heard(engine, recording(70), max_tokens=1, timestamps=True)
        assert found.usage.completion_tokens <= 1

    async def test_the_bound_on_tokens_is_of_all_windows(self, engine):
        found = await heard(engine, recording(70), max_tokens=10)
        assert found.usage.completion_tokens <= 10

    async def test_the_decoder_stays_within_its_positions(self, engine):
        found = await heard(engine, max_tokens=9999)
        assert found.usage.completion_tokens <= 440

    async def test_a_long_prompt_is_refused(self, engine):
        with pytest.raises(ContextLengthError, match="prompt and hotwords"):
            await heard(engine, prompt="fox " * 400)

    async def test_words_need_their_option(self, engine):
        with pytest.raises(UnsupportedError, match="word_timestamps: true"):
            await heard(engine, words=True)

    async def test_limits(self, engine, model):
        with pytest.raises(RequestError, match="200 s of max_audio_seconds"):
            await heard(engine, recording(201))
        small = OpenVINOEngine(model, engine_kwargs={**OPTIONS, "max_audio_bytes": 1000})
        await small.start()
        try:
            with pytest.raises(RequestError, match="1,000 bytes of max_audio_bytes"):
                await heard(small)
        finally:
            await small.stop()

    async def test_a_call_that_is_given_up_leaves_nothing_behind(self, engine):
        call = asyncio.ensure_future(heard(engine, recording(70), max_tokens=None))
        await asyncio.sleep(0)
        call.cancel()
        await asyncio.wait([call])
        assert (await heard(engine)).text == (await heard(engine)).text

    async def test_words_and_segments_of_a_long_recording_have_times(self, tmp_path):
        model = hearing_model(tmp_path, letters=True)
        engine = OpenVINOEngine(model, engine_kwargs={**OPTIONS, "word_timestamps": True})
        told = list[Any]()
        token = window_listener.set(lambda _, part: told.append(part))
        await engine.start()
        try:
            found = await heard(engine, recording(190), words=True, timestamps=True, max_tokens=210)
        finally:
            window_listener.reset(token)
            await engine.stop()
        assert found.duration == 190
        assert len(told) == 7  # of up to 30 s each
        begin = 0.0
        for part in told:
            assert part.words
            assert part.segments
            for timed in (part.segments, part.words):
                starts = [one.start for one in timed]
                assert starts == sorted(starts)
                assert all(begin <= one.start < part.duration for one in timed)
                assert all(one.start <= one.end <= part.duration for one in timed)
            said = "".join(segment.text for segment in part.segments)
            assert said.replace(" ", "") == part.text.replace(" ", "")
            begin = part.duration
        assert found.segments == tuple(one for part in told for one in part.segments)
        assert found.words == tuple(one for part in told for one in part.words)


class Timed(NamedTuple):
    """A chunk or a word, as GenAI gives them."""

    text: str
    start_ts: float
    end_ts: float


def test_what_a_model_makes_of_the_silence_behind_a_window_is_left_out():
    said, made_up = Timed("Good night.", 0.0, 11.8), Timed("Thank you.", 12.0, 14.0)
    assert sounding([said, made_up], 12.0) == [said]
    assert sounding([said, made_up], 0.0) == [said]


def test_words_that_are_heard_again_come_once():
    first = [Timed("Good", 0.1, 0.5), Timed("night", 0.5, 1.0)]
    cut_off = [Timed("and", 1.1, 1.3), Timed("slee", 1.4, 1.5)]
    again = [Timed("and", 1.2, 1.3), Timed("sleep", 1.4, 2.0)]
    chunks = [Timed("Good night", 0.0, 1.1), Timed("and sleep", 1.1, 2.0)]
    assert heard_once(first + cut_off + again, chunks, 2.0) == first + again
