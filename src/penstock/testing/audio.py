"""The contracts of engines that hear and of engines that speak."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest

from penstock.engines.base import LLMEngine
from penstock.errors import RequestError, UnsupportedError
from penstock.testing.asking import PATIENCE
from penstock.types import SpeechRequest, Transcription, TranscriptionRequest


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
