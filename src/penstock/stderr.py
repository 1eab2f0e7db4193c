"""What is told on standard error, where there is one."""

from __future__ import annotations

import contextlib
import sys


def say(text: str) -> None:
    """Print lines for a person. Whether anybody reads them is no matter: standard error may be
    closed, or full.
    """
    if sys.stderr is not None:  # else `print` would take standard output
        with contextlib.suppress(OSError, ValueError):  # ValueError: it was closed
            print(text, file=sys.stderr, flush=True)


def is_terminal() -> bool:
    """Whether standard error is a terminal."""
    try:
        return sys.stderr is not None and sys.stderr.isatty()
    except ValueError:  # it was closed
        return False
