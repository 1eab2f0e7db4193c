"""The texts of a request as token ids: the head, and for each branch its stem and its labels."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import lru_cache
from itertools import takewhile

from msgspec import Struct

from penstock.engines.decisions.checks import bad_question
from penstock.engines.decisions.prompts import Branch, RequestTexts
from penstock.engines.decisions.trie import Path, Trie
from penstock.errors import RequestError
from penstock.types import Question

Encode = Callable[[list[str], bool], list[list[int]]]
"""The ids of each text; the tokenizer adds special tokens of its own or does not."""

STEP_CHARS = 1 << 15
"""Characters that are encoded at once: some hundredths of a second."""
_MOST_KEPT, _MOST_KEPT_CHARS = 10_000, 4_000_000
"""Texts of questions and labels, mostly short. Their ids take some ten times as many bytes."""

_MOST_TRIES, _MOST_TOKENS_KEPT = 400, 1000
"""Tries of labels that are kept, and the tokens that one of them may have."""


class TokenBranch(Struct, frozen=True):
    """What follows the head: the ids of the question's `stem`, then those of one of the labels."""

    stem: list[int]
    trie: Trie


class TokenizedHead(Struct, frozen=True):
    """The ids of the head and its branches. `size` counts all tokens that are read, `longest` those
    of the head with the longest branch and label.
    """

    ids: list[int]
    branches: list[TokenBranch]

    @property
    def size(self) -> int:
        return len(self.ids) + sum(len(branch.stem) for branch in self.branches)

    @property
    def longest(self) -> int:
        return len(self.ids) + max(
            len(branch.stem) + max(map(len, branch.trie.paths)) for branch in self.branches
        )


class TextIds:
    """The token ids of texts. Those of questions are kept, as they come again with each input."""

    def __init__(self, encode: Encode) -> None:
        self._encode = encode
        self._known: dict[tuple[str, bool], list[int]] = {}
        self._chars = 0

    def __call__(self, texts: list[str], special_tokens: bool) -> list[list[int]]:
        known = self._known
        if len(known) > _MOST_KEPT or self._chars > _MOST_KEPT_CHARS:
            known.clear()
            self._chars = 0
        new = [text for text in dict.fromkeys(texts) if (text, special_tokens) not in known]
        if new:
            for text, ids in zip(new, self._encode(new, special_tokens), strict=True):
                known[text, special_tokens] = ids
                self._chars += len(text)
        return [known[text, special_tokens] for text in texts]

    def forget(self, texts: list[str], special_tokens: bool) -> None:
        """Keep the ids of these texts no longer."""
        for text in texts:
            if self._known.pop((text, special_tokens), None) is not None:
                self._chars -= len(text)


def tokenized(asked: RequestTexts, questions: Sequence[Question], encode: Encode) -> TokenizedHead:
    """The ids of a request's texts. Raises `RequestError` for a label without tokens, and for two
    that the model reads alike.
    """
    steps = tokenizing(asked, questions, encode)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            found: TokenizedHead = end.value
            return found


def tokenizing(
    asked: RequestTexts, questions: Sequence[Question], encode: Encode
) -> Generator[None, None, TokenizedHead]:
    """As `tokenized`, in steps of at most about `STEP_CHARS` characters, so that nobody waits long.

    A label is encoded together with its question: a tokenizer may join the two.
    """
    (head,) = encode([asked.head], asked.special_tokens)
    branches: list[TokenBranch] = []
    unmade = deque(asked.branches)
    known: deque[Path] = deque()
    for number, texts in enumerate(_in_steps(asked.branches, STEP_CHARS - len(asked.head))):
        if number:
            yield
        known.extend(map(tuple, encode(texts, False)))
        while unmade and len(known) > len(unmade[0].labels):
            branch = unmade.popleft()
            found = [known.popleft() for _ in ("", *branch.labels)]
            branches.append(_branch(branch, questions, found))
    if not head and any(not branch.stem for branch in branches):
        raise RequestError("the input is empty", param="input")
    return TokenizedHead(head, branches)


def _in_steps(branches: Sequence[Branch], room: int) -> Iterator[list[str]]:
    """The text of each branch, alone and with each label, in lists of about `STEP_CHARS`
    characters; `room` is left in the first.
    """
    texts: list[str] = []
    for branch in branches:
        for label in ("", *branch.labels):
            texts.append(branch.text + label)
            room -= len(texts[-1])
            if room <= 0:
                yield texts
                texts, room = [], STEP_CHARS
    if texts:
        yield texts


def _branch(branch: Branch, questions: Sequence[Question], found: list[Path]) -> TokenBranch:
    """A branch of the ids of its text, and of those of its text with each label."""
    question = questions[branch.number]
    bare, *paths = found
    for label, path in zip(branch.labels, paths, strict=True):
        if not path or path == bare:
            why = f"has the option {label!r}, of which the model has no token"
            raise bad_question(branch.number, question, why)
    if len(set(paths)) < len(paths):
        raise bad_question(branch.number, question, "has two options that the model reads alike")
    shared = _shared(found)
    ends = tuple(path[shared:] for path in paths)
    is_short = sum(map(len, ends)) <= _MOST_TOKENS_KEPT
    return TokenBranch(list(paths[0][:shared]), (_known_trie if is_short else Trie)(ends))


_known_trie = lru_cache(_MOST_TRIES)(Trie)
"""The same questions come with each input."""


def _shared(paths: Sequence[Path]) -> int:
    """How many tokens all paths begin with."""
    low, high = min(paths), max(paths)
    same = (a == b for a, b in zip(low, high, strict=False))
    return sum(takewhile(bool, same))
