"""Damage to the files of a folder, drawn from a seed."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

Change = Callable[[random.Random, bytes], bytes]


def _span(draw: random.Random, data: bytes) -> tuple[int, int]:
    start = draw.randrange(len(data))
    return start, min(len(data), start + draw.choice([1, 16, 64, 512, 4096]))


def _two(draw: random.Random, count: int) -> tuple[int, int]:
    first, second = sorted(draw.sample(range(count), 2)) if count > 1 else (0, 0)
    return first, second


def flip_bit(draw: random.Random, data: bytes) -> bytes:
    at = draw.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << draw.randrange(8)]) + data[at + 1 :]


def change_byte(draw: random.Random, data: bytes) -> bytes:
    at = draw.randrange(len(data))
    return data[:at] + bytes([draw.randrange(256)]) + data[at + 1 :]


def change_digit(draw: random.Random, data: bytes) -> bytes:
    """Another digit: the damage that a parser does not see."""
    places = [at for at, byte in enumerate(data) if chr(byte).isdigit()]
    at = draw.choice(places) if places else draw.randrange(len(data))
    return data[:at] + draw.choice([b"1", b"7"]) + data[at + 1 :]


def truncate(draw: random.Random, data: bytes) -> bytes:
    return data[: draw.randrange(len(data))]


def zero(draw: random.Random, data: bytes) -> bytes:
    start, stop = _span(draw, data)
    return data[:start] + bytes(stop - start) + data[stop:]


def remove_block(draw: random.Random, data: bytes) -> bytes:
    start, stop = _span(draw, data)
    return data[:start] + data[stop:]


def repeat_block(draw: random.Random, data: bytes) -> bytes:
    start, stop = _span(draw, data)
    return data[:stop] + data[start:]


def insert(draw: random.Random, data: bytes) -> bytes:
    at = draw.randrange(len(data))
    return data[:at] + draw.randbytes(draw.choice([1, 8, 100])) + data[at:]


def remove_line(draw: random.Random, data: bytes) -> bytes:
    lines = data.splitlines(keepends=True)
    del lines[draw.randrange(len(lines))]
    return b"".join(lines)


def repeat_line(draw: random.Random, data: bytes) -> bytes:
    lines = data.splitlines(keepends=True)
    lines.insert(draw.randrange(len(lines) + 1), draw.choice(lines))
    return b"".join(lines)


def swap_lines(draw: random.Random, data: bytes) -> bytes:
    lines = data.splitlines(keepends=True)
    first, second = _two(draw, len(lines))
    lines[first], lines[second] = lines[second], lines[first]
    return b"".join(lines)


def cut_lines(draw: random.Random, data: bytes) -> bytes:
    lines = data.splitlines(keepends=True)
    return b"".join(lines[: draw.randrange(len(lines))])


CHANGES: list[Change] = [
    flip_bit,
    flip_bit,
    change_byte,
    change_digit,
    change_digit,
    truncate,
    zero,
    remove_block,
    repeat_block,
    insert,
    remove_line,
    repeat_line,
    repeat_line,
    swap_lines,
    cut_lines,
]


def mutate(folder: Path, other: Path, draw: random.Random) -> str:
    """Damage one file of `folder`, or put one of the folder `other` in its place. Returns what was
    done.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "lock")
    file = draw.choice(files)
    kind = draw.randrange(len(CHANGES) + 5)
    if kind < len(CHANGES) and file.stat().st_size:
        change = CHANGES[kind]
        _write(file, change(draw, file.read_bytes()))
        return f"{change.__name__} {file.name}"
    if kind == len(CHANGES) and len(files) > 1:
        second = draw.choice([path for path in files if path != file])
        ours, theirs = file.read_bytes(), second.read_bytes()
        _write(file, theirs)
        _write(second, ours)
        return f"swap {file.name} and {second.name}"
    if kind == len(CHANGES) + 1:
        foreign = draw.choice(
            sorted(path for path in other.rglob("*") if path.is_file() and path.name != "lock")
        )
        target = folder / foreign.name if draw.random() < 0.5 else file
        _write(target, foreign.read_bytes())
        return f"foreign {foreign.name} as {target.name}"
    if kind == len(CHANGES) + 2:
        _write(file.with_name(file.name + ".tmp"), file.read_bytes()[: draw.randrange(100)])
        return f"stale {file.name}.tmp"
    if kind == len(CHANGES) + 3:
        shutil.copy(
            file,
            file.with_name(
                draw.choice(["part-0-77.jsonl", "rows-0-9.jsonl", "final.jsonl", "base-3"])
            ),
        )
        return f"copy of {file.name}"
    file.unlink()
    return f"remove {file.name}"


def _write(path: Path, data: bytes) -> None:
    path.unlink(missing_ok=True)  # it may be a link to an output
    path.write_bytes(data)
