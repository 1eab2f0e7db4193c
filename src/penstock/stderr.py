"""Prints messages on standard error, if the process has one."""

from __future__ import annotations

import contextlib
import sys


def say(text: str) -> None:
    """Print lines for a person. Never fails: standard error may be closed, or its pipe full."""
    if sys.stderr is not None:  # `print` would take standard output
        with contextlib.suppress(OSError, ValueError):  # ValueError: closed
            print(text, file=sys.stderr, flush=True)


def is_terminal() -> bool:
    """Whether standard error is a terminal."""
    try:
        return sys.stderr is not None and sys.stderr.isatty()
    except ValueError:  # closed
        return False
