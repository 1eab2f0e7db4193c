"""Speech-to-text, inside the worker process.

A recording is decoded once and then heard in windows, one call each: other requests get their turn
between two windows, and a caller sees the text of a window as soon as it is there.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import openvino_genai as genai

from penstock.engines.openvino.model.files import MODEL_KINDS
from penstock.engines.openvino.speech.recording import (
    SAMPLE_RATE,
    Samples,
    read_recording,
    windows,
)
from penstock.engines.openvino.tasks import Task
from penstock.errors import RequestError, UnsupportedError, context_overflow
from penstock.types import Transcription, TranscriptionSegment, TranscriptionWord, Usage

_COMMAND_TOKENS = 8
"""Room for the tokens that begin an answer: start, language, task, timestamps."""


class Hearing(Task):
    """A model that transcribes speech to text."""

    kind = MODEL_KINDS["transcribe"]

    def _start(self) -> None:
        words = {"word_timestamps": True} if self._options.word_timestamps else {}
        self._pipeline = genai.ASRPipeline(
            self._path, self._options.device, **self._properties, **words
        )
        self._recordings: dict[int, tuple[Samples, list[tuple[int, int]]]] = {}

    def open_recording(self, key: int, audio: bytes) -> int:
        """Decode a recording and hold it until it is closed. Returns the number of its windows.
        Raises `RequestError` and `MissingExtraError`.
        """
        if len(audio) > self._options.max_audio_bytes:
            raise RequestError(
                f"the recording has more than the {self._options.max_audio_bytes:,} bytes of"
                " max_audio_bytes",
                param="file",
            )
        samples = read_recording(audio, self._options.max_audio_seconds)
        self._recordings[key] = samples, windows(samples)
        return len(self._recordings[key][1])

    def close_recording(self, key: int) -> None:
        self._recordings.pop(key, None)

    def transcribe(
        self,
        key: int,
        window: int,
        language: str | None,
        task: str,
        max_tokens: int | None,
        timestamps: bool = False,
        words: bool = False,
        prompt: str = "",
        hotwords: str = "",
    ) -> Transcription:
        """The text of a window of an open recording. Times are those of the whole recording;
        `duration` is what has been heard of it. `language` None detects it. The prompt goes before
        the first window, hotwords before each.
        """
        samples, places = self._recordings[key]
        start, end = places[window]
        config = self._config(language, task)
        if words and not self._options.word_timestamps:
            raise UnsupportedError(
                "times of words need the engine option word_timestamps: true",
                param="timestamp_granularities",
            )
        before = {"initial_prompt": prompt if window == 0 else "", "hotwords": hotwords}
        given = {name: text for name, text in before.items() if text}
        for name, text in given.items():
            setattr(config, name, text)
        half = self._context_length // 2
        tokens = len(self.tokenize(" ".join(given.values()))) if given else 0
        if tokens > half - 1:
            raise context_overflow(half - 1, tokens, what="prompt and hotwords", param="prompt")
        # Past its last position a decoder talks nonsense, so the bound holds also if nobody asks
        # for one.
        room = max(self._context_length - _COMMAND_TOKENS - tokens, 1)
        config.max_new_tokens = min(max_tokens or room, room)
        config.return_timestamps = timestamps
        config.word_timestamps = words
        result = self._pipeline.generate(samples[start:end], config)
        offset, heard = start / SAMPLE_RATE, end / SAMPLE_RATE
        return Transcription(
            result.texts[0].strip(),
            Usage(0, result.perf_metrics.get_num_generated_tokens()),
            _segments(result.chunks[0], offset, heard)
            if timestamps and result.chunks is not None
            else None,
            language or "".join(result.languages[:1]).strip("<|>") or None,
            heard,
            _words(result.words[0] if result.words else (), offset, heard) if words else None,
        )

    def _config(self, language: str | None, task: str) -> Any:
        config = self._pipeline.get_generation_config()
        known = {name.strip("<|>"): name for name in config.lang_to_id or {}}
        if language is not None and known and language not in known:
            raise RequestError(
                f"this model does not know the language '{language}'; it knows"
                f" {', '.join(sorted(known))}",
                param="language",
            )
        if config.is_multilingual:
            config.task = task
            if language is not None:
                config.language = known.get(language, language)
        elif task != "transcribe" or language not in (None, "en"):
            raise RequestError("this model only transcribes English", param="language")
        return config


def _segments(
    chunks: Iterable[Any], offset: float, heard: float
) -> tuple[TranscriptionSegment, ...]:
    """A chunk whose end the model did not tell has a negative one: it lasts to the window's end."""
    return tuple(
        TranscriptionSegment(
            min(offset + chunk.start_ts, heard),
            min(offset + chunk.end_ts, heard) if chunk.end_ts >= 0 else heard,
            chunk.text.strip(),
        )
        for chunk in chunks
    )


def _words(words: Iterable[Any], offset: float, heard: float) -> tuple[TranscriptionWord, ...]:
    return tuple(
        TranscriptionWord(
            min(offset + word.start_ts, heard), min(offset + word.end_ts, heard), word.text.strip()
        )
        for word in words
    )
