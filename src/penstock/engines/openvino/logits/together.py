"""Which small requests are read side by side, and what is read once before all of them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import Protocol, TypeVar

from penstock.engines.openvino.logits.model import LogitModel

_WORTH = 8
"""Tokens that requests must share at least, for these to be read once."""


class Small(Protocol):
    """A request: how many tokens it has, and at how many places it asks."""

    size: int
    asks: int


S = TypeVar("S", bound=Small)


def begins(ids: list[int], shared: list[int]) -> bool:
    """Whether these tokens begin with the shared ones, and go on."""
    return len(ids) > len(shared) and ids[: len(shared)] == shared


def beginning(heads: Sequence[list[int]], kept: list[int]) -> list[int]:
    """The tokens that are read once for requests with these heads: what all begin with if that is
    worth a change, else those `kept` so far.
    """
    low, high = min(heads), max(heads)
    same = sum(takewhile(bool, (a == b for a, b in zip(low, high, strict=False))))
    same = min(same, min(map(len, heads)) - 1) if len(heads) > 1 else 0
    known = len(kept) if begins(heads[0], kept) else 0
    return heads[0][:same] if same >= known + _WORTH else kept


def side_by_side(small: Sequence[S], model: LogitModel, begun: int) -> list[S]:
    """The first of some requests, and others of about its length, as many as are read at once; each
    is filled up to the longest. `begun` of the tokens of each are read before.
    """
    by_size = sorted(small, key=lambda one: -one.size)
    while True:
        longest = by_size[0].size
        most = min(model.batch // max(longest - begun, 1), model.rows(longest))
        group: list[S] = []
        asks = 0
        for one in by_size[: max(most, 1)]:
            asks += one.asks
            if group and asks > model.asked:
                break
            group.append(one)
        if small[0] in group:
            return group
        by_size = by_size[len(group) :]
