"""What becomes of rows that fail, and the limits at which a job stops."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping
from datetime import datetime, timedelta
from functools import cache
from typing import Any

from penstock import errors
from penstock.batch.job.result import Counts
from penstock.errors import ConfigError, JobLimitError, PenstockError, nearest

ACTIONS = ("keep", "fail", "skip", "retry")
OTHERS = "*"
_ENOUGH_ROWS = 50
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|h|d)?")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class ErrorPolicy:
    """What to do with rows that fail, by the kind of their error.

    "keep" makes an error row, "skip" leaves the row out of the output, "fail" ends the job, "retry"
    asks again even where the failure looks permanent, and keeps what fails nevertheless. `given` is
    one action for all kinds, or a mapping of kinds to actions, in which "*" stands for the others.
    Raises `ConfigError`.
    """

    def __init__(self, given: str | Mapping[str, str]) -> None:
        actions = {OTHERS: given} if isinstance(given, str) else dict(given)
        for kind, action in actions.items():
            if action not in ACTIONS:
                where = f"{kind}: " if kind != OTHERS else ""
                raise ConfigError(
                    f"{where}must be keep, fail, skip or retry, not {action!r}",
                    field="on_error",
                    value=action,
                )
            if kind != OTHERS and kind not in _kinds():
                raise ConfigError(
                    f"no error is called '{kind}'", field="on_error", hint=nearest(kind, _kinds())
                )
        self._actions = actions
        self._default = actions.get(OTHERS, "keep")

    @property
    def leaves_out_all(self) -> bool:
        """Whether no row that fails is in the output, whatever its error."""
        return {self._default, *self._actions.values()} == {"skip"}

    def action(self, kind: str) -> str:
        """What to do with a row whose error is of this kind."""
        return self._actions.get(kind, self._default)

    def retries(self, error: PenstockError) -> bool:
        """Whether a row is asked for again after this error."""
        return error.retryable or self.action(error.kind) == "retry"


@cache
def _kinds() -> frozenset[str]:
    """The kinds of all errors."""
    found: set[str] = set()
    pending: list[type[PenstockError]] = [errors.PenstockError]
    while pending:
        kind = pending.pop()
        found.add(kind.kind)
        pending.extend(kind.__subclasses__())
    return frozenset(found)


class Limits:
    """When a job stops cleanly, so that it can be resumed.

    `tokens` is the most tokens of prompts and answers together in this run. `error_rate` is the
    largest share of rows that may fail, from 50 rows on. `seconds` is the time left, including the
    time before the first row.
    """

    def __init__(
        self,
        *,
        tokens: int | None = None,
        error_rate: float | None = None,
        seconds: float | None = None,
    ) -> None:
        self._ends = None if seconds is None else time.monotonic() + seconds
        self._tokens = tokens
        self._error_rate = error_rate

    @property
    def any(self) -> bool:
        """Whether there is a limit that counts can reach: all but the time."""
        return self._tokens is not None or self._error_rate is not None

    @property
    def seconds(self) -> float | None:
        """The time that is left now."""
        return None if self._ends is None else self._ends - time.monotonic()

    def exceeded(self, counts: Counts, *, end: bool = False) -> JobLimitError | None:
        """The limit that these counts have reached, if any. `end`: no more rows will come."""
        tokens = counts.prompt_tokens + counts.completion_tokens
        if self._tokens is not None and tokens >= self._tokens and not end:
            return JobLimitError(
                f"{tokens:,} tokens were computed, and max_tokens_total is {self._tokens:,}"
            )
        rate = self._error_rate
        if (
            rate is not None
            and counts.failed > rate * counts.rows
            and (end or counts.rows >= _ENOUGH_ROWS)
        ):
            share = counts.failed / counts.rows
            return JobLimitError(
                f"{counts.failed:,} of {counts.rows:,} rows failed ({share:.1%}), and"
                f" max_error_rate is {rate:.1%}"
            )
        return None


def seconds_until(deadline: Any) -> float | None:
    """The seconds from now to a deadline: a number of them, a `timedelta`, text such as "90s",
    "30m" or "2h", or a point in time (a `datetime`, or as ISO 8601 text). Raises `ConfigError`.
    """
    if deadline is None:
        return None
    try:
        seconds = _seconds(deadline)
    except (ValueError, OverflowError):  # also for a time whose year is out of range
        seconds = None
    if seconds is None or not math.isfinite(seconds):
        raise ConfigError(
            f"must be seconds, a duration such as '30m', or a time, not {deadline!r}",
            field="deadline",
            value=deadline,
        )
    if seconds <= 0:
        raise ConfigError(f"has passed: {deadline}", field="deadline", value=deadline)
    return seconds


def _seconds(deadline: Any) -> float | None:
    if isinstance(deadline, timedelta):
        return deadline.total_seconds()
    if isinstance(deadline, int | float) and not isinstance(deadline, bool):
        return float(deadline)
    if isinstance(deadline, str):
        match = _DURATION.fullmatch(deadline.strip())
        if match:
            return float(match[1]) * _UNITS[match[2] or "s"]
        deadline = datetime.fromisoformat(deadline)
    if isinstance(deadline, datetime):
        return deadline.timestamp() - time.time()
    return None
