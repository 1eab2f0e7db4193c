"""Transcriptions by a Whisper with random weights."""

import asyncio
from typing import Any

import pytest
import pytest_asyncio

from penstock.engines.media.audio import window_listener
from penstock.engines.openvino.engine import OpenVINOEngine
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

    async def test_words_have_times(self, tmp_path):
        model = hearing_model(tmp_path, letters=True)
        engine = OpenVINOEngine(model, engine_kwargs={**OPTIONS, "word_timestamps": True})
        await engine.start()
        try:
            found = await heard(engine, recording(31), words=True, max_tokens=40)
            assert found.words
            assert all(0 <= word.start <= word.end <= 31 for word in found.words)
            assert found.words[-1].end > 20
        finally:
            await engine.stop()
