"""The windows of a recording: each handed to a listener, all joined to one transcription."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any

from penstock.types import Transcription, Usage

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
