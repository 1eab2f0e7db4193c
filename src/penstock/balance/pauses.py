"""The patience with servers that refuse for load. Tells of their pauses, in the log and to the job
that meets them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextvars import ContextVar

from msgspec import Struct

PATIENCE_S = 60.0
"""How long servers that refuse for load are waited for: the longest pause that they may name, and
how long they may answer nobody.
"""
SERVED_PATIENCE_S = 5.0
"""The same for a request whose caller waits at a connection, from its first refusal on: it can come
again by itself.
"""
is_served: ContextVar[bool] = ContextVar("penstock_is_served", default=False)
"""Whether the caller of the current task waits at a connection."""
WORTH_TELLING_S = 5.0
"""Shorter pauses are the ordinary way of a busy server."""
_TOLD_AGAIN_AFTER_S = 60.0
_told: dict[str, float] = {}
_log = logging.getLogger(__name__)


class Pauses(Struct):
    """What one job met: how many refusals made for a pause worth telling, the longest one in
    seconds and whose it was, and how many requests were given up because of refusals. `shown_until`
    is a time of `time.monotonic`.
    """

    count: int = 0
    given_up: int = 0
    longest_s: float = 0.0
    server: str = ""
    last_s: float = 0.0
    shown_until: float = 0.0

    def note(self, server: str, seconds: float, *, is_kept: bool) -> None:
        self.count += 1
        self.given_up += not is_kept
        if seconds >= self.longest_s:
            self.longest_s, self.server = seconds, server
        self.last_s = seconds
        self.shown_until = time.monotonic() + min(seconds, _TOLD_AGAIN_AFTER_S)

    @property
    def is_now(self) -> bool:
        """Whether the last one is not over, or was named within the last minute."""
        return time.monotonic() < self.shown_until


job_pauses: ContextVar[Pauses | None] = ContextVar("penstock_pauses", default=None)
"""Those of the job that the current task belongs to."""


def patience() -> float:
    """That of the current task, in seconds."""
    return SERVED_PATIENCE_S if is_served.get() else PATIENCE_S


def note_given_up() -> None:
    """A request of the current task was given up, because a server did not stop to refuse it."""
    if (pauses := job_pauses.get()) is not None:
        pauses.given_up += 1


def note_pause(
    server: str,
    seconds: float,
    *,
    is_kept: bool = True,
    is_named: bool = True,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """A server that refused a request is to be left alone for so long, because it asks for that or
    (`is_named` false) because it has refused before. `is_kept`: it is.
    """
    if seconds < WORTH_TELLING_S:
        return
    if (pauses := job_pauses.get()) is not None:
        pauses.note(server, seconds, is_kept=is_kept)
    now = clock()
    if now >= _told.get(server, now):  # one refusal speaks for all of a burst
        if len(_told) > 1000:
            _told.clear()
        _told[server] = now + _TOLD_AGAIN_AFTER_S
        why = (
            "asks for a pause of" if is_named else "refuses requests for load and is left alone for"
        )
        what = (
            "nothing is sent there until then"
            if is_kept
            else "the requests that it refuses so are given up"
        )
        _log.warning("%s %s %s: %s", server, why, span(seconds), what)


def span(seconds: float) -> str:
    """A time in its two largest units, for a person: "1 h 30 min"."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    for unit, size, part, name in (
        ("min", 60, 1, "s"),
        ("h", 3600, 60, "min"),
        ("d", 86400, 3600, "h"),
    ):
        if seconds < size * 60 or unit == "d":
            whole, rest = divmod(round(seconds), size)
            return f"{whole} {unit} {rest // part} {name}" if rest // part else f"{whole} {unit}"
    return ""
