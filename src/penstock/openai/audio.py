"""OpenAI's audio API: the body of `/v1/audio/speech`, and streamed transcriptions."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from penstock.errors import PenstockError, RequestError
from penstock.openai.framing import DONE, data, error_events
from penstock.types import Delta, SpeechRequest, Usage


class SpeechBody(Struct, kw_only=True):
    """Body of `POST /v1/audio/speech`."""

    model: str = ""
    input: str
    voice: str | dict[str, Any] | None = None
    response_format: Literal["mp3", "opus", "aac", "flac", "wav", "pcm"] = "mp3"
    speed: Annotated[float, Meta(ge=0.25, le=4)] = 1.0
    stream_format: Literal["audio", "sse"] = "audio"
    instructions: str | None = None

    def request(self, *, request_id: str = "") -> SpeechRequest:
        """The neutral request. Raises `RequestError`."""
        if not self.input.strip():
            raise RequestError("input must not be empty", param="input")
        voice = self.voice.get("id") if isinstance(self.voice, dict) else self.voice
        if voice is not None and not isinstance(voice, str):
            raise RequestError("voice must be a name", param="voice")
        return SpeechRequest(self.input, voice, self.speed, request_id)


class TranscriptFramer:
    """Writes a streamed transcription: an event for each window's text, then one with all."""

    def __init__(self) -> None:
        self._text = ""
        self._usage = Usage()

    def open(self) -> bytes:
        return b""

    def frame(self, delta: Delta) -> bytes:
        self._text += delta.text
        if delta.usage is not None:
            self._usage = delta.usage
        if not delta.text:
            return b""
        return data({"type": "transcript.text.delta", "delta": delta.text})

    def close(self) -> bytes:
        usage = self._usage
        counts = {
            "type": "tokens",
            "input_tokens": usage.prompt_tokens,
            "output_tokens": usage.completion_tokens,
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        }
        return data({"type": "transcript.text.done", "text": self._text, "usage": counts}) + DONE

    def error(self, error: PenstockError) -> bytes:
        return error_events(error)
