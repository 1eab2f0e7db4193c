"""What is read for decisions: the heads and branches of requests, as token trees.

Branches that begin alike share tokens. A request that is small is one tree with its head, and
several such trees are read at once. Of a large one the head is read first; then its branches follow
in groups, each read behind the head.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from penstock.engines.decisions.tokens import TokenizedHead
from penstock.engines.decisions.trie import Path

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


def whole(read: TokenizedHead) -> TokenTree:
    """A request as one tree, its head included."""
    tree = TokenTree()
    tree.ids += read.ids  # branches begin behind them, so nobody looks for their places
    tree.parents += range(-1, len(read.ids) - 1)
    head = len(read.ids) - 1
    for number, branch in enumerate(read.branches):
        for place in branch.trie.parting:
            tree.want(number, place, [*branch.stem, *place], head)
    return tree


def groups(read: TokenizedHead, most: int) -> Iterator[TokenTree]:
    """The branches of a request as trees of at most `most` tokens. A stem that is longer leads a
    tree of its labels, so it is read once; of a longer label all is the lead.
    """
    tree = TokenTree()
    for number, branch in enumerate(read.branches):
        labels = TokenTree(branch.stem)
        for place in branch.trie.parting:
            path = [*branch.stem, *place]
            if len(path) <= most:
                if len(tree) + tree.new_tokens(path) > most:
                    yield tree
                    tree = TokenTree()
                tree.want(number, place, path)
            elif len(place) <= most:
                if len(labels) + labels.new_tokens(place) > most:
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
