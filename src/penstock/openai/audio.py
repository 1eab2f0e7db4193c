"""OpenAI's audio API: the body of `/v1/audio/speech`, and transcriptions, streamed or in lines of a
batch.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, ClassVar, Literal

from msgspec import Meta, Struct

from penstock.errors import RequestError
from penstock.openai.framing import DONE, Framer, data
from penstock.openai.media.images import bytes_in, is_data_uri
from penstock.openai.requests import Count
from penstock.openai.responses import TIMED_FORMATS
from penstock.parsing import decode_json
from penstock.types import Delta, SpeechRequest, TranscriptionRequest, Usage


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
        voice = self.voice
        if isinstance(voice, dict):
            voice = voice["id"] if voice.keys() == {"id"} else voice
            if not isinstance(voice, str):
                raise RequestError('voice must be a name, or {"id": name}', param="voice")
        return SpeechRequest(self.input, voice, self.speed, request_id)


class TranscriptionFields(Struct, kw_only=True):
    """What all requests for a transcription have beside the recording."""

    task: ClassVar[Literal["transcribe", "translate"]] = "transcribe"

    model: str = ""
    language: str | None = None
    prompt: str = ""
    hotwords: str = ""
    response_format: Literal["json", "text", "srt", "verbose_json", "vtt"] = "json"
    timestamp_granularities: list[Literal["word", "segment"]] = []
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    stream: bool = False
    temperature: float | None = None
    to_language: str | None = None

    def request(self, recording: bytes, *, request_id: str = "") -> TranscriptionRequest:
        """The neutral request. Raises `RequestError`."""
        words = "word" in self.timestamp_granularities
        if words and self.response_format != "verbose_json":
            raise RequestError(
                "times of words come with response_format verbose_json",
                param="timestamp_granularities",
            )
        return TranscriptionRequest(
            recording,
            language=self.language,
            task=self.task,
            max_tokens=self.max_completion_tokens or self.max_tokens,
            request_id=request_id,
            timestamps=self.response_format in TIMED_FORMATS,
            words=words,
            prompt=self.prompt,
            hotwords=self.hotwords,
        )


class TranscriptionBody(TranscriptionFields, kw_only=True):
    """Fields of the form of `POST /v1/audio/transcriptions`, whose values are texts (`as_values`
    makes JSON's of them). `file` is the recording.
    """

    file: Any


class TranslationBody(TranscriptionBody, kw_only=True):
    """The same of `POST /v1/audio/translations`."""

    task = "translate"


class TranscriptionLine(TranscriptionFields, kw_only=True):
    """Body of a batch's line for `/v1/audio/transcriptions`. `file_url` is the recording as a data
    URI; the name is that of vLLM's batches. The answer is an object, so there are no subtitles.
    """

    names: ClassVar = {"audio": "file_url"}

    file_url: str
    response_format: Literal["json", "verbose_json"] = "json"

    def recording(self) -> bytes:
        """The recording. Raises `RequestError`."""
        if not is_data_uri(self.file_url):
            raise RequestError(
                f"file_url must be a data URI (data:audio/wav;base64,…): '{self.file_url[:50]}'",
                param="file_url",
            )
        return bytes_in(self.file_url, "file_url")


class TranslationLine(TranscriptionLine, kw_only=True):
    """The same for `/v1/audio/translations`."""

    task = "translate"


_TEXTS = frozenset({"model", "language", "prompt", "hotwords", "response_format", "to_language"})
_WORDS = {"true": True, "false": False, "null": None}


def as_values(fields: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """The fields of a form as JSON has them. An empty text was not given; a name that ends with
    `[]` has a list.
    """
    body: dict[str, Any] = {}
    for name, value in fields:
        plain = name.removesuffix("[]")
        if isinstance(value, str):
            if not value:
                continue
            if plain not in _TEXTS:
                value = _value(plain, value)
        if plain != name:
            before = body.get(plain)
            value = [*(before if isinstance(before, list) else ()), value]
        body[plain] = value
    return body


def _value(name: str, text: str) -> Any:
    if name == "stream" and text in ("0", "1"):
        return text == "1"
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    try:
        return decode_json(text)
    except ValueError:
        return text


class TranscriptFramer(Framer):
    """Writes a streamed transcription: an event for each window's text, then one with all."""

    def __init__(self) -> None:
        self._text = ""
        self._usage = Usage()

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
