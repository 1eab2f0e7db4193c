"""In which order a window of rows enters the engine.

Rows whose prompts begin alike go one after another: the engine's prefix cache then computes a
shared beginning once, while it is still held. Rows with long answers go first, so that in the end
none of them runs on alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter

from penstock.batch.rows.row import Row

FIRST_WINDOW = 64
LARGEST_WINDOW = 4096
_SHORTEST = 64  # characters; less is below a cache block, and no gain
_WORTHWHILE = 0.05  # of all prompt text
_SAMPLES = 256


def by_prefix(rows: Sequence[Row]) -> list[Row]:
    """The rows with equal beginnings together, or as they came where that would gain nothing.

    What all prompts have in common (a template's opening, a system prompt) is cached in any order
    and counts for nothing.
    """
    arranged = sorted(rows, key=attrgetter("prefix"))  # stable: equal prompts keep their order
    if len(arranged) < 3:
        return list(rows)
    common = shared(arranged[0].prefix, arranged[-1].prefix)
    before, total = _gain(rows, common)
    after, _ = _gain(arranged, common)
    return arranged if after - before > _WORTHWHILE * total else list(rows)


def in_order(rows: Sequence[Row]) -> list[Row]:
    """The rows as they should be asked: by the size of their answers, and among those of one size
    by prefix.
    """
    arranged = by_prefix(rows)
    if len({row.longest.bit_length() for row in arranged}) > 1:
        arranged.sort(key=lambda row: -row.longest.bit_length())  # stable
    return arranged


def shared(first: str, second: str) -> int:
    """How many characters two texts have in common at their beginnings."""
    low, high = 0, min(len(first), len(second))
    while low < high:
        middle = (low + high + 1) // 2
        if first.startswith(second[low:middle], low):
            low = middle
        else:
            high = middle - 1
    return low


def _gain(rows: Sequence[Row], common: int) -> tuple[int, int]:
    """Characters that neighbours share beyond `common`, and all characters, over a sample of
    neighbours.
    """
    gain = total = 0
    pairs = len(rows) - 1
    samples = min(pairs, _SAMPLES)
    for number in range(samples):
        at = number * pairs // samples
        total += len(rows[at + 1].prefix)
        beyond = shared(rows[at].prefix, rows[at + 1].prefix) - common
        if beyond >= _SHORTEST:
            gain += beyond
    return gain, total
