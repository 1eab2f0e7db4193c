"""The command line. Nothing is imported before Ctrl-C can end the program without a traceback."""

from __future__ import annotations

import os


def main() -> None:
    """Run the command line. Errors raised on purpose are told on one line; PENSTOCK_DEBUG=1 shows
    where they arose.
    """
    import signal

    # Else it is to be ignored, as behind `&`.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, leave)
    from penstock.cli import process

    process.run()


def leave(*_: object) -> None:
    """End at once, as a handler of Ctrl-C: whoever has something to bring to an end handles it in
    another way.
    """
    os._exit(130)
