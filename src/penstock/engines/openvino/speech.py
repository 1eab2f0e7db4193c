"""Speech, inside the worker process: recordings become text, and texts are spoken.

A recording is decoded once and then heard in windows, one call each: other requests get their turn
between two windows, and a caller sees the text of a window as soon as it is there. A text is spoken
by SpeechT5 with its vocoder.

WAV files are read with the standard library, other forms with PyAV, whose home is here. The form is
told by a file's first bytes, so that a list of other files (a playlist) is never followed. What is
decoded is bounded by its length in seconds: a file of some kilobytes can hold days of silence.
"""

from __future__ import annotations

import io
import math
import sys
import wave
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import openvino_genai as genai
from numpy.typing import NDArray

from penstock import lazy
from penstock.engines.openvino.model.files import MODEL_KINDS
from penstock.engines.openvino.options import reason_of
from penstock.engines.openvino.tasks import Task
from penstock.errors import (
    EngineStartError,
    RequestError,
    UnsupportedError,
    context_overflow,
    nearest,
    text_of,
)
from penstock.types import Speech, Transcription, TranscriptionSegment, TranscriptionWord, Usage

SAMPLE_RATE = 16_000
WINDOW_SECONDS = 30
"""Models hear a recording in windows of at most this length."""
FORMS = "wav, mp3, flac, ogg, opus, m4a, mp4, webm, aac and aiff"

Samples = NDArray[np.float32]

_SHORTEST_SAMPLES = SAMPLE_RATE // 10
_RATES = range(1_000, 768_001)
_MOST_CHANNELS = 64
_BLOCK_SECONDS = 10
_LOUDEST = 2.0**31
"""Floats may hold whole numbers of 32 bits that nobody scaled; models' spectra stand that."""
_QUIET_SECONDS = 0.1
_SEARCHED_SECONDS = 5


def read_recording(audio: bytes, max_seconds: float) -> Samples:
    """A recording as mono samples from -1 to 1, at 16 kHz. Raises `RequestError` for what cannot be
    decoded or lasts longer than `max_seconds`, and `MissingExtraError` for a form that needs PyAV.
    """
    if not audio:
        raise _bad_audio("it is empty")
    form = _form_of(audio)
    if form is None:
        raise _bad_audio(f"it is none of {FORMS}")
    samples = _wav(audio, max_seconds) if form == "wav" else None
    if samples is None:
        samples = _decoded(audio, form, max_seconds)
    if not len(samples):
        raise _bad_audio("it has no samples")
    if not -_LOUDEST <= samples.min() <= samples.max() <= _LOUDEST:  # false for NaN too
        raise _bad_audio("it has samples that are no numbers, or too large")
    return np.pad(samples, (0, max(_SHORTEST_SAMPLES - len(samples), 0)))


def windows(samples: Samples) -> list[tuple[int, int]]:
    """Where each window begins and ends, in samples. A recording of more than 30 s is cut at the
    quietest tenth of a second in the last 5 s of each window.
    """
    most, quiet = WINDOW_SECONDS * SAMPLE_RATE, int(_QUIET_SECONDS * SAMPLE_RATE)
    found, start = list[tuple[int, int]](), 0
    while len(samples) - start > most:
        searched = samples[start + most - _SEARCHED_SECONDS * SAMPLE_RATE : start + most]
        loudness = np.square(searched).reshape(-1, quiet).sum(axis=1)
        place = len(loudness) - 1 - int(np.argmin(loudness[::-1]))
        end = start + most - len(searched) + place * quiet + quiet // 2
        found.append((start, end))
        start = end
    return [*found, (start, len(samples))]


def _form_of(audio: bytes) -> str | None:
    """The name that PyAV gives to the form of a file."""
    head = audio[:12]
    begins = {b"ID3": "mp3", b"fLaC": "flac", b"OggS": "ogg", b"\x1aE\xdf\xa3": "matroska"}
    for start, form in begins.items():
        if head.startswith(start):
            return form
    if head[:4] in (b"RIFF", b"RF64") and head[8:] == b"WAVE":
        return "wav"
    if head[:4] == b"FORM" and head[8:] in (b"AIFF", b"AIFC"):
        return "aiff"
    if head[4:8] == b"ftyp":
        return "mp4"
    if len(head) > 1 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0:
        return "mp3" if head[1] & 0x06 else "aac"
    return None


def _wav(audio: bytes, max_seconds: float) -> Samples | None:
    """The samples of a WAV file with PCM; None for one of another coding."""
    try:
        with wave.open(io.BytesIO(audio)) as file:
            width, channels, rate = file.getsampwidth(), file.getnchannels(), file.getframerate()
            _check_rate(rate, channels)
            # A header written to a pipe does not know the length.
            count = min(file.getnframes(), len(audio) // (width * channels))
            _check_seconds(count / rate, max_seconds)
            frames = file.readframes(count)
    except EOFError as error:
        raise _bad_audio(str(error) or "it ends too early") from None
    except wave.Error as error:
        if "unknown format" in str(error):
            return None
        raise _bad_audio(str(error)) from None
    # A recording may have been cut off in the middle of a frame.
    whole = len(frames) // (width * channels)
    values = _integers(frames[: whole * width * channels], width)
    mono = values.reshape(-1, channels).mean(axis=1, dtype=np.float64) / (1 << (8 * width - 1))
    return _resampled(mono, rate).astype(np.float32)


def _integers(frames: bytes, width: int) -> NDArray[np.generic]:
    if width == 1:  # these alone have no sign
        return np.frombuffer(frames, np.uint8).astype(np.int16) - 128
    if width == 3:
        wide = np.zeros((len(frames) // 3, 4), np.uint8)
        wide[:, 1:] = np.frombuffer(frames, np.uint8).reshape(-1, 3)
        return wide.view("<i4").reshape(-1) >> 8
    if width not in (2, 4):
        raise _bad_audio(f"it has {8 * width}-bit samples")
    return np.frombuffer(frames, f"<i{width}")


def _decoded(audio: bytes, form: str, max_seconds: float) -> Samples:
    av = lazy.require("av", needed_by=f"A recording in the form {form}")
    parts: list[Samples] = []
    size = 0
    try:
        with av.open(io.BytesIO(audio), format=form, metadata_errors="ignore") as file:
            if not file.streams.audio:
                raise _bad_audio("it has no sound in it")
            stream = file.streams.audio[0]
            _check_rate(stream.codec_context.sample_rate, stream.codec_context.channels)
            resampler = av.AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE)
            for frame in _frames(file.decode(stream)):
                for part in resampler.resample(frame):
                    parts.append(part.to_ndarray().reshape(-1).astype(np.float32, copy=False))
                    size += len(parts[-1])
                _check_seconds(size / SAMPLE_RATE, max_seconds)
    except RequestError:
        raise
    except (av.error.FFmpegError, ValueError, OverflowError, MemoryError) as error:
        raise _bad_audio(f"it cannot be decoded: {text_of(error)}") from None
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)


def _frames(decoded: Iterator[object]) -> Iterator[object | None]:
    """The frames, and None, which has a resampler give what it still holds."""
    yield from decoded
    yield None


def _check_rate(rate: int, channels: int) -> None:
    if rate not in _RATES or not 1 <= channels <= _MOST_CHANNELS:
        raise _bad_audio(f"it has {rate} samples a second in {channels} channels")


def _check_seconds(seconds: float, most: float) -> None:
    if seconds > most:
        raise RequestError(
            f"the recording lasts longer than the {most:g} s of max_audio_seconds", param="file"
        )


def _bad_audio(why: str) -> RequestError:
    return RequestError(f"the audio is not usable: {why}", param="file")


def _resampled(samples: NDArray[np.float64], rate: int) -> NDArray[np.float64]:
    """The samples at 16 kHz, by way of the spectrum: higher tones are cut off. In blocks with a
    second around each, so that long recordings take no more memory.
    """
    if rate == SAMPLE_RATE:
        return samples
    parts = []
    for start in range(0, len(samples), _BLOCK_SECONDS * rate):
        first = max(start - rate, 0)
        block = samples[first : start + (_BLOCK_SECONDS + 1) * rate]
        size = max(round(len(block) * SAMPLE_RATE / rate), 1)
        made = np.fft.irfft(np.fft.rfft(block), size) * (size / len(block))
        before = (start - first) // rate * SAMPLE_RATE
        parts.append(made[before : before + _BLOCK_SECONDS * SAMPLE_RATE])
    return np.concatenate(parts) if parts else samples


_COMMAND_TOKENS = 8
"""Room for the tokens that begin an answer: start, language, task, timestamps."""
_LEAST_TIMED = 2
"""Tokens of a window with times, whose first is a time: with no other, GenAI 2026.4.1 does not know
how far it has heard, and hears the window without end.
"""


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
        least = _LEAST_TIMED if timestamps else 1
        config.max_new_tokens = max(min(max_tokens or room, room), least)
        config.return_timestamps = timestamps
        config.word_timestamps = words
        result = self._pipeline.generate(samples[start:end], config)
        offset, heard = start / SAMPLE_RATE, end / SAMPLE_RATE
        text, chunks = result.texts[0], list[Any]()
        if timed := timestamps and result.chunks is not None:
            chunks = sounding(result.chunks[0], heard - offset)
            text = "".join(chunk.text for chunk in chunks)
        spoken = heard_once(result.words[0] if result.words else (), chunks, heard - offset)
        return Transcription(
            text.strip(),
            Usage(0, result.perf_metrics.get_num_generated_tokens()),
            _segments(chunks, offset, heard) if timed else None,
            language or "".join(result.languages[:1]).strip("<|>") or None,
            heard,
            _words(spoken, offset, heard) if words else None,
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


def sounding(timed: Iterable[Any], seconds: float) -> list[Any]:
    """The chunks or words that begin in a window of so many seconds. Behind its end stands the
    silence that fills it up to 30 s, of which models make words. The first is of the window,
    whatever the model says of its time.
    """
    return [one for at, one in enumerate(timed) if not at or one.start_ts < seconds]


def heard_once(words: Iterable[Any], chunks: Sequence[Any], seconds: float) -> list[Any]:
    """The words of a window, each once. What follows the last chunk that has an end is heard again
    from that end on, and GenAI gives the words of both times.
    """
    once: list[Any] = []
    for word in sounding(words, seconds):
        if once and word.start_ts < once[-1].start_ts:
            ends = (chunk.end_ts for chunk in chunks if chunk.end_ts <= word.start_ts)
            again = max(ends, default=0.0)
            once = [earlier for earlier in once if earlier.start_ts < again]
        once.append(word)
    return once


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


DEFAULT_VOICE = "default"


class Speaking(Task):
    """A model that speaks a text."""

    kind = MODEL_KINDS["speak"]

    def _open(self) -> None:
        self._pipeline = genai.Text2SpeechPipeline(
            self._path, self._options.device, **self._properties
        )

    def _start(self) -> None:
        self._open()
        shape = tuple(self._pipeline.get_speaker_embedding_shape())
        self._voices: dict[str, ov.Tensor] = {}
        for name, file in self._options.voices.items():
            try:
                numbers = np.fromfile(Path(file), np.float32)
            except OSError as error:
                raise EngineStartError(
                    f"the voice '{name}' cannot be read from '{file}': {error.strerror}"
                ) from None
            if numbers.size != math.prod(shape) or not np.isfinite(numbers).all():
                raise EngineStartError(
                    f"the voice '{name}' in '{file}' must be {math.prod(shape)} 32-bit floats"
                )
            self._voices[name] = ov.Tensor(numbers.reshape(shape))

    def _open_again(self) -> None:
        """End the process if that fails: nothing can be spoken without a pipeline."""
        del self._pipeline  # its memory is free before the next takes as much
        try:
            self._open()
        except Exception as error:
            sys.exit(f"the model that speaks cannot be opened again: {reason_of(error)}")

    def speak(self, text: str, voice: str | None, speed: float) -> Speech:
        """The text, spoken. Raises `RequestError` for an unknown voice and a text that is empty or
        too long.
        """
        known = [DEFAULT_VOICE, *self._voices]
        if voice is not None and voice not in known:
            raise RequestError(
                f"this model has no voice '{voice[:50]}'; it has {', '.join(known)}."
                f" {nearest(voice[:50], known)}",
                param="voice",
            )
        if speed != 1:
            raise UnsupportedError("this model speaks at speed 1 only", param="speed")
        if not text.strip():
            raise RequestError("there is no text to speak", param="input")
        tokens = len(self.encoded(text, special_tokens=True, names=False).ids)
        self._check_lengths([tokens], "input")
        with_voice = (self._voices[voice],) if voice in self._voices else ()
        try:
            result = self._pipeline.generate(text, *with_voice)
        except RuntimeError as error:  # what it held of this text would spoil the next one
            self._open_again()
            raise RequestError(
                f"the model cannot speak this text: {reason_of(error)}", param="input"
            ) from None
        samples = np.asarray(result.speeches[0].data, np.float32).reshape(-1)
        pcm = (np.clip(np.nan_to_num(samples), -1, 1) * 32767).astype("<i2").tobytes()
        return Speech(pcm, int(result.output_sample_rate), Usage(tokens, 0))
