"""Recordings: the windows of one that is heard, each handed to a listener, all joined to one
transcription; a text in pieces to speak, and speech written as a file. Forms other than WAV and
bare samples need PyAV.
"""

from __future__ import annotations

import io
import re
import wave
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any

from penstock import lazy
from penstock.types import Speech, Transcription, Usage

WindowListener = Callable[[int, Transcription], None]

window_listener: ContextVar[WindowListener | None] = ContextVar("window_listener", default=None)
"""Gets each window as soon as it is transcribed, with its number. An engine that hears a recording
at once calls nobody; one that died in between begins again with 0.
"""


def joined(windows: Sequence[Transcription]) -> Transcription:
    """One transcription of a recording's windows, whose times count from its beginning."""
    if len(windows) == 1:
        return windows[0]

    def all_of(name: str) -> Any:
        parts = [getattr(window, name) for window in windows]
        return None if parts[0] is None else tuple(one for part in parts for one in part)

    return Transcription(
        " ".join(filter(None, (window.text for window in windows))),
        Usage(0, sum(window.usage.completion_tokens for window in windows)),
        all_of("segments"),
        windows[0].language,
        windows[-1].duration,
        all_of("words"),
    )


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


_LONGEST = 400
"""Characters. Models learned from sentences, and lose the thread in longer texts."""
_ROOM = 2
"""Tokens that a tokenizer puts around a text."""
_SENTENCE = re.compile(r"[^.!?\n]*[.!?\n]*")


def pieces_of(text: str, context_length: int) -> list[str]:
    """The text in pieces of whole sentences, as many as fit. A sentence that is longer is cut at
    spaces, a word that is longer anywhere. At least one piece, which may be empty.
    """
    longest = max(min(_LONGEST, context_length - _ROOM), 1)
    pieces, last = list[str](), ""
    for part in _parts(text, longest):
        if last and len(last) + len(part) > longest:
            pieces.append(last.strip())
            last = ""
        last += part
    return [piece for piece in (*pieces, last.strip()) if piece] or [""]


def _parts(text: str, longest: int) -> list[str]:
    found = list[str]()
    for sentence in _SENTENCE.findall(text):
        while len(sentence) > longest:
            end = sentence.rfind(" ", 0, longest) + 1 or longest
            found.append(sentence[:end])
            sentence = sentence[end:]
        found.append(sentence)
    return found
