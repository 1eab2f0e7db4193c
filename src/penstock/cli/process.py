"""The process around a command: its standard streams, exit code, and error message."""

from __future__ import annotations

import codecs
import contextlib
import errno
import io
import os
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence

import click

from penstock.cli import leave
from penstock.errors import EngineStartError, MissingExtraError, PenstockError
from penstock.observability import say

_UNWRITABLE = (errno.EPIPE, errno.ENOSPC, errno.EBADF, errno.EIO, errno.EFBIG, errno.EDQUOT)


def run() -> None:
    """Run the command that the arguments name, and exit with its code."""
    _make_streams_usable()
    code = _code_of_command()
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        if not code:
            say(f"penstock: the output cannot be written: {error.strerror}")
        code = code or 1
        _drop(1)
    try:
        if sys.stderr is not None:
            sys.stderr.flush()
    except OSError:  # there is nobody to tell
        _drop(2)
    if code:
        raise SystemExit(code)


def _code_of_command() -> int | str | None:
    from penstock import env
    from penstock.cli.commands import cli

    debug = False
    try:
        debug = env.debug()
        return cli.main(prog_name="penstock", standalone_mode=False)  # type: ignore[no-any-return]
    except SystemExit as done:
        return done.code
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.UsageError as error:
        _say_usage(error)
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        signal.signal(signal.SIGINT, leave)
        return 130
    except Exception as error:
        if debug:
            raise
        say(f"penstock: {_fault(error)}")
        wrong = error.__cause__ if isinstance(error, EngineStartError) else None
        return 2 if _is_mistake(error) or _is_mistake(wrong) else 1


def _is_mistake(error: BaseException | None) -> bool:
    """Whether what was given is wrong, or cannot be done by what is installed here."""
    return isinstance(error, MissingExtraError) or (
        isinstance(error, PenstockError) and error.status < 500
    )


def _say_usage(error: click.UsageError) -> None:
    from penstock.cli.commands import usage_fault

    usage = ""
    if error.ctx is not None:
        if type(error).__name__ == "NoArgsIsHelpError":  # since click 8.2
            return say(error.ctx.get_help())
        usage = f"{error.ctx.get_usage()}\nTry '{error.ctx.command_path} --help'.\n\n"
    say(f"{usage}penstock: {usage_fault(error)}")


def _fault(error: Exception) -> str:
    if isinstance(error, PenstockError):
        return str(error)
    if isinstance(error, MemoryError):
        return "there is not enough memory"
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        return f"{error.strerror}: the limit is too low; `ulimit -n` raises this process's"
    if isinstance(error, OSError) and error.errno in _UNWRITABLE and error.filename is None:
        return f"the output cannot be written: {error.strerror}"
    return (
        f"{type(error).__name__}: {error}\n"
        "This is a fault in penstock itself; PENSTOCK_DEBUG=1 shows where it arose."
    )


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Within the context Ctrl-C raises `KeyboardInterrupt`, so that a command can clean up."""
    if signal.getsignal(signal.SIGINT) is not leave:  # no command line runs this
        yield
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, leave)


def _make_streams_usable() -> None:
    """Open the null device in place of closed standard streams. Else the next file would take a
    stream's number, and a process of the engine would write into it. What standard output cannot
    encode is escaped.
    """
    for descriptor, flags in ((0, os.O_RDONLY), (1, os.O_WRONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, flags)  # takes the lowest free number, which is this one
            os.set_inheritable(descriptor, True)
    if sys.stderr is None:
        # It stays open as long as the process.
        sys.stderr = open(2, "w", errors="backslashreplace", closefd=False)  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        codecs.register_error("as-json", _as_json)
        sys.stdout.reconfigure(errors="as-json")  # its encoding may lack characters


def _as_json(error: UnicodeError) -> tuple[str, int]:
    """Characters that an encoding lacks, as JSON escapes them: what is printed may be JSON."""
    import json

    assert isinstance(error, UnicodeEncodeError)
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end


def _drop(descriptor: int) -> None:
    """Keep the interpreter's exit from failing at output that cannot be written."""
    with contextlib.suppress(OSError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, descriptor)
        os.close(null)


BINARY = ("B", "KiB", "MiB", "GiB")
DECIMAL = ("B", "kB", "MB", "GB")


def size(count: float, units: Sequence[str] = BINARY) -> str:
    """A number of bytes for people: three digits, or a whole number: "1.46 KiB", "1,023 MiB"."""
    step = 1024 if units is BINARY else 1000
    place = 0
    while round(count) >= step and place < len(units) - 1:
        count, place = count / step, place + 1
    return f"{count:.3g} {units[place]}" if count < 99.95 else f"{count:,.0f} {units[place]}"


def plain_table(rows: Iterable[Sequence[str]]) -> str:
    """The rows as lines, each column as wide as its widest cell. The first row is the head."""
    table = [tuple(row) for row in rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in table
    )
