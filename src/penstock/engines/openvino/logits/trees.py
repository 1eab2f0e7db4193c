"""What of the requests for decisions is read at once: token trees, some side by side, and what many
begin with once before all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import takewhile
from typing import Protocol, TypeVar

from penstock.engines.decisions.tokens import TokenizedHead
from penstock.engines.decisions.trie import Path
from penstock.engines.openvino.logits.model import LogitModel

_WORTH = 8
"""Tokens that requests must share at least, for these to be read once."""

Want = tuple[int, Path]
"""A branch, and a place in its trie whose log probabilities are wanted."""


class TokenTree:
    """Tokens, each with the place of the one before it; -1: what is read before the tree.

    `wants` has what is asked after each place. After `lead`, which is read as a sequence first, a
    tree may have no tokens: its wants are of the place -1.
    """

    def __init__(self, lead: Sequence[int] = ()) -> None:
        self.lead = list(lead)
        self.ids: list[int] = []
        self.parents: list[int] = []
        self.wants: dict[int, list[Want]] = {}
        self._places: dict[tuple[int, int], int] = {}

    def __len__(self) -> int:
        return len(self.ids)

    def new_tokens(self, path: Sequence[int], after: int = -1) -> int:
        """How many tokens `grow` would add."""
        for size, token in enumerate(path):
            if (known := self._places.get((after, token))) is None:
                return len(path) - size
            after = known
        return 0

    def grow(self, path: Sequence[int], after: int = -1) -> int:
        """Add the tokens of a path that are not there yet. Returns the place of its last one."""
        for token in path:
            place = self._places.get((after, token))
            if place is None:
                place = self._places[after, token] = len(self.ids)
                self.ids.append(token)
                self.parents.append(after)
            after = place
        return after

    def want(self, number: int, place: Path, path: Sequence[int], after: int = -1) -> None:
        """Ask for a place in the trie of branch `number`, to which `path` leads from `after`."""
        self.wants.setdefault(self.grow(path, after), []).append((number, place))


def whole(read: TokenizedHead, begun: int = 0) -> TokenTree:
    """A request as one tree: its head without the first `begun` tokens, and its branches."""
    tree = TokenTree()
    tree.ids += read.ids[begun:]  # branches begin after these, so no places are needed
    head = len(tree.ids) - 1
    tree.parents += range(-1, head)
    for number, branch in enumerate(read.branches):
        for place in branch.trie.parting:
            tree.want(number, place, [*branch.stem, *place], head)
    return tree


def groups(read: TokenizedHead, most: int, asked: int) -> Iterator[TokenTree]:
    """The branches of a request as trees of at most `most` tokens, and `asked` places that are
    wanted. A stem that is longer leads a tree of its labels, so it is read once; of a longer label
    all is the lead.
    """
    tree = TokenTree()
    for number, branch in enumerate(read.branches):
        labels = TokenTree(branch.stem)
        for place in branch.trie.parting:
            path = [*branch.stem, *place]
            if len(path) <= most:
                if len(tree) + tree.new_tokens(path) > most or len(tree.wants) == asked:
                    yield tree
                    tree = TokenTree()
                tree.want(number, place, path)
            elif len(place) <= most:
                if len(labels) + labels.new_tokens(place) > most or len(labels.wants) == asked:
                    yield labels
                    labels = TokenTree(branch.stem)
                labels.want(number, place, place)
            else:
                alone = TokenTree(path)
                alone.want(number, place, ())
                yield alone
        if labels.wants:
            yield labels
    if tree.wants:
        yield tree


def grouped(trees: Iterator[TokenTree], most: int, asked: int) -> Iterator[list[TokenTree]]:
    """At most `most` trees at once, with `asked` places that are wanted. One that has something of
    its own before it is read alone, and so is one without tokens.
    """
    found: list[TokenTree] = []
    for tree in trees:
        alone = bool(tree.lead) or not tree.ids
        places = sum(len(one.wants) for one in (*found, tree))
        if found and (alone or len(found) == most or places > asked):
            yield found
            found = []
        found.append(tree)
        if alone:
            yield found
            found = []
    if found:
        yield found


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
