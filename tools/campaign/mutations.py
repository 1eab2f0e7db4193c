"""State of interrupted jobs that is damaged at random: each damage is refused, or the job ends
exactly.
"""

from __future__ import annotations

import contextlib
import io
import random
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from promises import Promise

import penstock
from jobs import FORMS, settled, tickets
from penstock.batch.write import sinks
from penstock.errors import PenstockError

ROWS = 300
Damage = Callable[[bytes, random.Random], bytes]


def campaign(seed: int, deadline: float, folder: Path) -> list[Promise]:
    """One damage at a time, in a copy of the state."""
    promise = Promise("Damaged state of a job is refused, or does not change its output")
    chance = random.Random(seed)
    source = tickets(folder / "tickets.jsonl", ROWS, seed)
    stopped = {form: _stopped(source, folder / form, form) for form in FORMS}
    number = 0
    while time.monotonic() < deadline:
        form = FORMS[number % len(FORMS)]
        home, expected = stopped[form]
        work = folder / "work"
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(home, work)
        what = _damage(work, chance)
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # which tells of the damage
                _run(source, work / f"out.{form}")
        except PenstockError as error:
            promise.held(f"refused ({type(error).__name__})")
        except BaseException as error:
            promise.broke(f"{form}, {what}: {type(error).__name__}: {error}")
        else:
            if _read(work / f"out.{form}") == expected:
                promise.held("exact")
            else:
                promise.broke(f"{form}, {what}: another output")
        number += 1
    return [promise]


def _read(output: Path) -> object:
    """The rows of an output; None if it cannot be read."""
    try:
        return settled(output)
    except (ValueError, OSError):
        return None


def _run(source: Path, output: Path, **options: object) -> None:
    penstock.run(
        str(source), str(output), model="simulated", prompt="{text}", progress=False, **options
    )


def _stopped(source: Path, home: Path, form: str) -> tuple[Path, list[dict[str, object]]]:
    """The folder of a job that was stopped half-way, and the rows of one that was not."""
    home.mkdir()
    _run(source, home / f"whole.{form}")
    expected = settled(home / f"whole.{form}")
    for path in home.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    with _small_parts(), contextlib.suppress(PenstockError):
        _run(source, home / f"out.{form}", max_tokens_total=ROWS * 15)
    return home, expected


@contextlib.contextmanager
def _small_parts() -> Iterator[None]:
    usual, sinks.PART_ROWS = sinks.PART_ROWS, 40
    try:
        yield
    finally:
        sinks.PART_ROWS = usual


def _damage(home: Path, chance: random.Random) -> str:
    files = sorted(
        path
        for path in home.rglob("*")
        if path.is_file() and path.name != "lock" and path.stat().st_size
    )
    victim = chance.choice(files)
    name = chance.choice(sorted(DAMAGES))
    victim.write_bytes(DAMAGES[name](victim.read_bytes(), chance))
    return f"{name} in {victim.name}"


def _flip(data: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(data))
    return data[:at] + bytes([data[at] ^ (1 << chance.randrange(8))]) + data[at + 1 :]


def _zero(data: bytes, chance: random.Random) -> bytes:
    at, length = chance.randrange(len(data)), chance.randrange(1, 64)
    return data[:at] + b"\0" * len(data[at : at + length]) + data[at + length :]


def _cut(data: bytes, chance: random.Random) -> bytes:
    return data[: chance.randrange(len(data))]


def _lose(data: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(data))
    return data[:at] + data[at + chance.randrange(1, 64) :]


def _double_line(data: bytes, chance: random.Random) -> bytes:
    lines = data.splitlines(keepends=True)
    at = chance.randrange(len(lines))
    return b"".join([*lines[: at + 1], *lines[at:]])


def _lose_line(data: bytes, chance: random.Random) -> bytes:
    lines = data.splitlines(keepends=True)
    del lines[chance.randrange(len(lines))]
    return b"".join(lines)


def _swap_lines(data: bytes, chance: random.Random) -> bytes:
    lines = data.splitlines(keepends=True)
    one, other = chance.randrange(len(lines)), chance.randrange(len(lines))
    lines[one], lines[other] = lines[other], lines[one]
    return b"".join(lines)


def _append(data: bytes, chance: random.Random) -> bytes:
    return data + chance.randbytes(chance.randrange(1, 64))


DAMAGES: dict[str, Damage] = {
    "a flipped bit": _flip,
    "zeroed bytes": _zero,
    "a cut end": _cut,
    "lost bytes": _lose,
    "a doubled line": _double_line,
    "a lost line": _lose_line,
    "swapped lines": _swap_lines,
    "bytes at the end": _append,
}
