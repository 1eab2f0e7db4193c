"""Answers of `POST /v1/audio/transcriptions`, in each of OpenAI's formats."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from penstock.types import Transcription, TranscriptionSegment

TIMED_FORMATS = frozenset({"verbose_json", "srt", "vtt"})
"""The formats that need timestamps."""
FORMATS = ("json", "text", *sorted(TIMED_FORMATS))


def verbose(result: Transcription, segments: Sequence[TranscriptionSegment]) -> dict[str, Any]:
    """Body of `verbose_json`. Times are in seconds, `language` is a code such as "en"."""
    return {
        "task": "transcribe",
        "language": result.language or "",
        "duration": result.duration
        if result.duration is not None
        else max((s.end for s in segments), default=0.0),
        "text": result.text,
        "segments": [
            {"id": n, "start": s.start, "end": s.end, "text": s.text}
            for n, s in enumerate(segments)
        ],
    }


def subtitles(segments: Sequence[TranscriptionSegment], form: str) -> str:
    """The segments as SubRip ("srt") or WebVTT ("vtt")."""
    point, head = (",", "") if form == "srt" else (".", "WEBVTT\n\n")
    cues = []
    for number, segment in enumerate(segments, 1):
        name = f"{number}\n" if form == "srt" else ""
        # A blank line would end the cue, and an arrow would begin another one.
        text = "\n".join(filter(None, map(str.strip, segment.text.splitlines()))).replace(
            "-->", "->"
        )
        cues.append(
            f"{name}{_clock(segment.start, point)} --> {_clock(segment.end, point)}\n{text}\n"
        )
    return head + "\n".join(cues)


def _clock(seconds: float, point: str) -> str:
    whole, milliseconds = divmod(round(seconds * 1000), 1000)
    minutes, seconds_left = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{seconds_left:02}{point}{milliseconds:03}"
