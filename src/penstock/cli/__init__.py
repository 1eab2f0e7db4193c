"""The command line. It imports nothing before Ctrl-C can end the program without a traceback."""

from __future__ import annotations

import os


def main() -> None:
    """Run the command line. Errors print one line; PENSTOCK_DEBUG=1 adds the traceback."""
    # Built in, where `signal` imports enum: time enough for a Ctrl-C.
    import _signal as signal  # type: ignore[import-not-found]

    # Otherwise SIGINT is ignored, as in a background job of the shell.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, leave)
    from penstock.cli import process

    process.run()


def leave(*_: object) -> None:
    """Exit at once, on Ctrl-C. Commands with work to finish install another handler."""
    os._exit(130)
