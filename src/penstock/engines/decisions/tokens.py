"""The texts of a request as token ids: the head, and for each branch its stem and its labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain, takewhile

from msgspec import Struct

from penstock.engines.decisions.checks import bad_question
from penstock.engines.decisions.prompts import RequestTexts
from penstock.engines.decisions.trie import Path, Trie
from penstock.errors import RequestError
from penstock.types import Question

Encode = Callable[[list[str], bool], list[list[int]]]
"""The ids of each text; the tokenizer adds special tokens of its own or does not."""


_MOST_KEPT = 10_000
"""Texts of questions and labels, mostly short."""


class TokenBranch(Struct, frozen=True):
    """What follows the head: the ids of the question's `stem`, then those of one of the labels."""

    stem: list[int]
    trie: Trie


class TokenizedHead(Struct, frozen=True):
    """The ids of the head and its branches. `size` counts all tokens that are read."""

    ids: list[int]
    branches: list[TokenBranch]

    @property
    def size(self) -> int:
        return len(self.ids) + sum(len(branch.stem) for branch in self.branches)


class TextIds:
    """The ids of texts, kept for those of questions, which come again with each input."""

    def __init__(self, encode: Encode) -> None:
        self._encode = encode
        self._known: dict[tuple[str, bool], list[int]] = {}

    def __call__(self, texts: list[str], special_tokens: bool) -> list[list[int]]:
        known = self._known
        if len(known) > _MOST_KEPT:
            known.clear()
        new = [text for text in dict.fromkeys(texts) if (text, special_tokens) not in known]
        if new:
            for text, ids in zip(new, self._encode(new, special_tokens), strict=True):
                known[text, special_tokens] = ids
        return [known[text, special_tokens] for text in texts]

    def forget(self, texts: list[str], special_tokens: bool) -> None:
        """Keep the ids of these texts no longer."""
        for text in texts:
            self._known.pop((text, special_tokens), None)


def tokenized(asked: RequestTexts, questions: Sequence[Question], encode: Encode) -> TokenizedHead:
    """The ids of a request's texts. Raises `RequestError` for a label without tokens, and for two
    that the model reads alike.

    A label is encoded together with its question: a tokenizer may join the two.
    """
    (head,) = encode([asked.head], asked.special_tokens)
    texts = dict.fromkeys(
        chain.from_iterable(
            (branch.text, *(branch.text + label for label in branch.labels))
            for branch in asked.branches
        )
    )
    ids = dict(zip(texts, encode(list(texts), False), strict=True))
    branches = []
    for branch in asked.branches:
        question = questions[branch.number]
        bare = ids[branch.text]
        paths = [tuple(ids[branch.text + label]) for label in branch.labels]
        for label, path in zip(branch.labels, paths, strict=True):
            if not path or list(path) == bare:
                why = f"has the option {label!r}, of which the model has no token"
                raise bad_question(branch.number, question, why)
        if len(set(paths)) < len(paths):
            why = "has two options that the model reads alike"
            raise bad_question(branch.number, question, why)
        shared = _shared([tuple(bare), *paths])
        branches.append(TokenBranch(list(paths[0][:shared]), Trie([p[shared:] for p in paths])))
    if not head and any(not branch.stem for branch in branches):
        raise RequestError("the input is empty", param="input")
    return TokenizedHead(head, branches)


def _shared(paths: Sequence[Path]) -> int:
    """How many tokens all paths begin with."""
    low, high = min(paths), max(paths)
    same = (a == b for a, b in zip(low, high, strict=False))
    return sum(takewhile(bool, same))
