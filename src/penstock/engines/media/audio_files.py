"""Writes speech as a file. Forms other than WAV and bare samples need PyAV."""

from __future__ import annotations

import io
import wave
from typing import Any

from penstock import lazy
from penstock.types import Speech

CONTENT_TYPES = {
    "wav": "audio/wav",
    "pcm": "audio/pcm",
    "mp3": "audio/mpeg",
    "opus": "audio/ogg",
    "flac": "audio/flac",
    "aac": "audio/aac",
}
"""The forms, with their media types."""
_CODERS = {
    "mp3": ("mp3", "libmp3lame"),
    "opus": ("ogg", "libopus"),
    "flac": ("flac", "flac"),
    "aac": ("adts", "aac"),
}
_OPUS_RATE = 48_000


def check_form(form: str) -> None:
    """Raise `MissingExtraError` for a form that nothing here writes."""
    if form in _CODERS:
        lazy.require("av", needed_by=f"Speech in the form {form}")


def audio_file(speech: Speech, form: str) -> bytes:
    """The bytes of a file with the speech. May take long. Raises `MissingExtraError`."""
    if form == "pcm":
        return speech.pcm
    file = io.BytesIO()
    if form == "wav":
        with wave.open(file, "wb") as plain:
            plain.setnchannels(1)
            plain.setsampwidth(2)
            plain.setframerate(speech.rate)
            plain.writeframes(speech.pcm)
        return file.getvalue()
    av: Any = lazy.require("av", needed_by=f"Speech in the form {form}")
    container, coder = _CODERS[form]
    with av.open(file, "w", format=container) as out:
        stream = out.add_stream(coder, rate=_OPUS_RATE if form == "opus" else speech.rate)
        stream.layout = "mono"
        frame = av.AudioFrame(format="s16", layout="mono", samples=len(speech.pcm) // 2)
        frame.sample_rate = speech.rate
        frame.planes[0].update(speech.pcm.ljust(frame.planes[0].buffer_size, b"\0"))
        resampler = av.AudioResampler(
            format=stream.format, layout="mono", rate=stream.rate, frame_size=stream.frame_size
        )
        for part in (*resampler.resample(frame), *resampler.resample(None)):
            out.mux(stream.encode(part))
        out.mux(stream.encode(None))
    return file.getvalue()
