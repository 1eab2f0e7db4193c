"""Probabilities of labels of several tokens, from a trie of the tokens.

Where labels part, the probabilities of the tokens that they go on with are normalised among
themselves; a label's probability is the product over the places where it parts from others. Tokens
that no other label competes with count as certain, so a long label is not less likely for its
length, and the probabilities sum to 1. This is the distribution of decoding under the constraint of
a prefix trie (De Cao et al., "Autoregressive Entity Retrieval", ICLR 2021,
https://arxiv.org/abs/2010.00904), in the form of a hierarchical softmax (Morin and Bengio, AISTATS
2005). A label that ends where others go on has what the model gives to anything but those.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from msgspec import Struct

from penstock.errors import EngineError

Path = tuple[int, ...]


class Trie:
    """The token sequences `paths` of labels, as a tree. `ends` has the label that ends at a place.

    `parting` lists the places where labels part, each by the tokens that lead there, parents first,
    with the tokens that labels go on with.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = list(paths)
        following: dict[Path, dict[int, None]] = {}
        for path in self.paths:
            for size, token in enumerate(path):
                following.setdefault(path[:size], {})[token] = None
        self.ends = {path: number for number, path in enumerate(self.paths)}
        self.parting: dict[Path, tuple[int, ...]] = {
            place: tuple(tokens)
            for place, tokens in following.items()
            if len(tokens) + (place in self.ends) > 1
        }


class Shares(Struct, frozen=True):
    """The probability of each label, and that of all together where they first part."""

    probabilities: list[float]
    mass: float


def shares(trie: Trie, logprobs: Mapping[Path, Sequence[float]]) -> Shares:
    """Probabilities of a trie's labels from the log probabilities of the tokens in its `parting`.

    A place where the model gives nothing to any of them is shared equally. Raises `EngineError` for
    what is no number.
    """
    branches: dict[Path, dict[int | None, float]] = {}
    mass = 1.0
    for count, (place, tokens) in enumerate(trie.parting.items()):
        chances = [math.exp(value) for value in logprobs[place]]
        whole = math.fsum(chances)
        if math.isnan(whole):
            raise EngineError(
                "the model gives probabilities that are no numbers (NaN): its weights are damaged,"
                " or too large for its precision"
            )
        each: dict[int | None, float] = dict(zip(tokens, chances, strict=True))
        if place in trie.ends:
            each[None] = max(1.0 - whole, 0.0)
        elif count == 0:
            mass = min(whole, 1.0)
        total = math.fsum(each.values())
        branches[place] = {
            token: chance / total if total > 0 else 1 / len(each) for token, chance in each.items()
        }
    products = [_product(branches, path) for path in trie.paths]
    total = math.fsum(products)
    return Shares([product / total for product in products], mass)


def _product(branches: Mapping[Path, Mapping[int | None, float]], path: Path) -> float:
    product = 1.0
    for size, token in enumerate(path):
        if (branch := branches.get(path[:size])) is not None:
            product *= branch[token]
    if (branch := branches.get(path)) is not None:
        product *= branch[None]
    return product
