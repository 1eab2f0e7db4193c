"""The requests for decisions in the worker, read beside the pipeline that generates.

A turn reads one chunk: the next piece of a long head, a group of branches, or several small
requests together. Where a large request and small ones wait, they take turns. So neither a long
input nor many questions stall the answers of others.

What is read are token trees: branches that begin alike share tokens. A request that is small is one
tree with its head, and several such trees are read at once. Of a large one the head is read first;
then its branches follow in groups, each read behind the head.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import numpy as np

from penstock.engines.decisions.prompts import RequestTexts
from penstock.engines.decisions.tokens import TextIds, TokenizedHead, tokenizing
from penstock.engines.decisions.trie import Path, shares
from penstock.engines.openvino.logits.model import LogitModel, Reading, Tree, log_softmax
from penstock.engines.openvino.logits.scoring import Logits
from penstock.engines.openvino.logits.trees import (
    TokenTree,
    Want,
    beginning,
    begins,
    grouped,
    groups,
    side_by_side,
    whole,
)
from penstock.engines.openvino.options import failure_of
from penstock.engines.openvino.pipeline import Tokenizer
from penstock.engines.process import Call, Failed, Reply
from penstock.errors import EngineError, PenstockError, context_overflow
from penstock.types import Question, Usage

if TYPE_CHECKING:
    from penstock.engines.openvino.lanes.vision import Vision
    from penstock.engines.openvino.logits.merging import Merged

_DONE = object()
_WAIT_SECONDS = 0.002
_WINDOW = 512
"""Requests that are looked at for those to be read together."""
_QUESTIONS = list[Question]


class Deciding:
    """Requests for decisions. `alone`: no two are read together, so that an answer depends on its
    request alone. `vision` is that of a model that sees.
    """

    def __init__(
        self,
        logits: Logits,
        tokenizer: Tokenizer,
        context_length: int,
        alone: bool,
        vision: Vision | None = None,
    ) -> None:
        self._logits = logits
        self._tokenizer = tokenizer
        self._context_length = context_length
        self._alone = alone
        self._vision = vision
        self._thread = ThreadPoolExecutor(1, "penstock-deciding")
        self._ids = TextIds(tokenizer.encode)
        self._arrived: list[Call] = []
        self._tokenizing: deque[_Tokenizing] = deque()
        self._waiting: deque[_Pending] = deque()
        self._large_next = False
        self._shared: list[int] = []
        """What the small requests begin with that are read now."""
        self._last: list[int] = []
        """The head of the request that was read last."""

    @property
    def busy(self) -> bool:
        return bool(self._arrived or self._tokenizing or self._waiting)

    def begin(self, call: Call) -> None:
        """Take a request in: texts and questions."""
        self._arrived.append(call)

    def _take_arrived(self) -> list[Reply | Failed]:
        """Tokenize what has arrived, all inputs in one call. Returns what is refused."""
        arrived, self._arrived = self._arrived, []
        refused: list[Reply | Failed] = []
        asked: list[tuple[int, RequestTexts, list[Question]]] = []
        for call in arrived:
            try:
                given, questions = call.args
                texts = msgspec.convert(given, RequestTexts)
                asked.append((call.id, texts, msgspec.convert(questions, _QUESTIONS)))
            except Exception as error:
                refused.append(failure_of(call.id, error))
        heads = {
            special: [texts.head for _, texts, _ in asked if texts.special_tokens is special]
            for special in (False, True)
        }
        for special, each in heads.items():
            with contextlib.suppress(Exception):  # because of one, which fails by itself below
                self._ids(each, special)
        left = [
            _Tokenizing(number, texts, tokenizing(texts, questions, self._ids))
            for number, texts, questions in asked
        ]
        for one in left:
            refused += self._tokenize(one)
        for special, each in heads.items():
            self._ids.forget(each, special)
        return refused

    def _tokenize(self, one: _Tokenizing) -> list[Reply | Failed]:
        """Take one step with a request's texts. Returns why it is refused, if it is."""
        try:
            next(one.steps)
        except StopIteration as end:
            try:
                self._check(end.value)
            except PenstockError as error:
                return [failure_of(one.number, error)]
            self._waiting.append(_Pending(one.number, end.value, one.texts))
        except Exception as error:
            return [failure_of(one.number, error)]
        else:
            self._tokenizing.append(one)
        return []

    def _check(self, read: TokenizedHead) -> None:
        """Raise `PenstockError` for what the model cannot read whole."""
        self._tokenizer.check_uncut(read.ids, "input", "input")
        if read.longest > self._context_length:
            what = "an input with a question"
            raise context_overflow(self._context_length, read.longest, what=what)

    def abort(self, number: int) -> None:
        """Drop a request that was aborted."""
        self._arrived = [call for call in self._arrived if call.id != number]
        self._tokenizing = deque(one for one in self._tokenizing if one.number != number)
        self._waiting = deque(one for one in self._waiting if one.number != number)
        self._note_idle()

    def turn(self) -> list[Reply | Failed]:
        """Read one chunk, or nothing while the model loads. Returns answers, and what failed."""
        refused: list[Reply | Failed] = []
        if self._tokenizing:
            refused += self._tokenize(self._tokenizing.popleft())
        refused += self._take_arrived()
        return refused + (self._read_chunk() if self._waiting else [])

    def _read_chunk(self) -> list[Reply | Failed]:
        try:
            model = self._logits.model()
        except Exception as error:
            failed: list[Reply | Failed] = [failure_of(one.number, error) for one in self._waiting]
            self._waiting.clear()
            return failed
        if model is None:
            return []
        done, large, begun = self._next(model)
        if large is not None and (self._large_next or not done):
            done, self._large_next = [large], False
        else:
            large, self._large_next = None, True
        try:
            if large is None:
                if begun and not model.go_behind(begun):
                    return []
                _read_together(model, done, len(begun))
            else:
                if large.steps is None:
                    large.steps = self._steps(large, model)
                if next(large.steps, _DONE) is not _DONE:
                    return []
            answers = [one.reply() for one in done]
        except Exception as error:
            answers = [failure_of(one.number, error) for one in done]
        self._last = done[0].read.ids
        read = {one.number for one in done}
        self._waiting = deque(one for one in self._waiting if one.number not in read)
        self._note_idle()
        return answers

    def _steps(self, one: _Pending, model: LogitModel) -> Iterator[None]:
        """Read a large request, or one with images: these are looked at first, in a thread."""
        if one.texts.images:
            looking = self._thread.submit(self._look, one.texts, model)
            while not looking.done():
                wait((looking,), _WAIT_SECONDS)
                yield
            one.head = looking.result()
            # Only the number of ids matters here, and there is one for each token.
            one.read = msgspec.structs.replace(one.read, ids=[0] * len(one.head))
            self._check(one.read)
        yield from one.in_chunks(model)

    def _look(self, texts: RequestTexts, model: LogitModel) -> Merged:
        assert self._vision is not None
        shown = texts.head, texts.image_mark, texts.images
        return model.merging(*self._vision.tagged(*shown, self._tokenizer))

    def _next(self, model: LogitModel) -> tuple[list[_Pending], _Pending | None, list[int]]:
        """The small requests that are read together, the first large one, and what the small ones
        begin with.
        """
        window = list(islice(self._waiting, _WINDOW))
        trees = [one for one in window if one.is_tree(model)]
        if trees and not self._alone:
            heads = [one.read.ids for one in trees]
            self._shared = beginning(
                heads if len(heads) > 1 else [*heads, self._last], self._shared
            )
        large: _Pending | None = None
        small: dict[int, list[_Pending]] = {}
        for one in window:
            begun = len(self._shared) if begins(one.read.ids, self._shared) else 0
            if one.is_tree(model) and one.size - begun <= model.chunk:
                small.setdefault(begun, []).append(one)
            elif large is None:
                large = one
        if not small:
            return [], large, []
        begun, first = next(iter(small.items()))
        group = first[:1] if self._alone else side_by_side(first, model, begun)
        return group, large, self._shared[:begun]

    def _note_idle(self) -> None:
        """Free the second copy of the model after a while, if no request waits."""
        if not self._waiting:
            self._logits.rest()


class _Tokenizing(NamedTuple):
    """One request whose texts take several turns to encode."""

    number: int
    texts: RequestTexts
    steps: Generator[None, None, TokenizedHead]


class _Pending:
    """One request until its answer, and the log probabilities read so far: by branch, and by place
    in the branch's trie. `steps` is its reading under way, if that takes several chunks. `head` is
    that of a text with images, once those were looked at.
    """

    def __init__(self, number: int, read: TokenizedHead, texts: RequestTexts) -> None:
        self.number = number
        self.read = read
        self.texts = texts
        self.head: Merged | None = None
        self.size = read.size
        self.asks = sum(len(branch.trie.parting) for branch in read.branches)
        self.steps: Iterator[None] | None = None
        self._known: list[dict[Path, list[float]]] = [{} for _ in read.branches]

    def is_tree(self, model: LogitModel) -> bool:
        """Whether all of it may be read at once, if it is small enough."""
        begun = self.steps is not None or self.texts.images
        return model.takes_trees and not begun and self.asks <= model.asked

    def in_chunks(self, model: LogitModel) -> Iterator[None]:
        """Read the head, and the branches behind it; a chunk each time."""
        reading = model.begin()
        if self.head is None:
            yield from _in_chunks(reading, self.read.ids, model.chunk)
        else:
            for start in range(0, len(self.head), model.chunk):
                reading.see(self.head[start : start + model.chunk])
                yield
        head = reading.mark()
        size = model.chunk if model.takes_trees else 0
        rows = min(model.batch // max(size, 1), model.rows(reading.length + model.chunk))
        for together in grouped(groups(self.read, size, model.asked), rows, model.asked):
            lead = together[0].lead
            yield from _in_chunks(reading, lead, model.chunk)
            trees = [self.tree(tree) for tree in together]
            for tree, asked in zip(together, trees, strict=True):
                at_once = asked.wanted.pop(-1, None)
                if at_once is not None and reading.after is not None:
                    logprobs = log_softmax(reading.after.astype(np.float64))
                    self.take(tree, {-1: logprobs[at_once].tolist()})
            if trees[0].ids:
                found = reading.trees(trees)
                for tree, values in zip(together, found, strict=True):
                    self.take(tree, values)
                yield
            reading.back(head)

    def tree(self, tree: TokenTree) -> Tree:
        """The tree with the tokens that are asked for after its places."""
        wanted = {
            at: [token for want in wants for token in self._parting(want)]
            for at, wants in tree.wants.items()
        }
        return Tree(tree.ids, tree.parents, wanted)

    def take(self, tree: TokenTree, found: dict[int, list[float]]) -> None:
        """Note the log probabilities `found` of the tokens `wanted`, in their order."""
        for at, values in found.items():
            left = iter(values)
            for number, place in tree.wants[at]:
                size = len(self._parting((number, place)))
                self._known[number][place] = list(islice(left, size))

    def reply(self) -> Reply | Failed:
        """The answer, once all is read."""
        try:
            each = [
                shares(branch.trie, known)
                for branch, known in zip(self.read.branches, self._known, strict=True)
            ]
        except EngineError as error:  # not of those that were read beside it
            return failure_of(self.number, error)
        return Reply(self.number, (each, Usage(self.read.size)))

    def _parting(self, want: Want) -> tuple[int, ...]:
        number, place = want
        return self.read.branches[number].trie.parting[place]


def _read_together(model: LogitModel, requests: list[_Pending], begun: int) -> None:
    """Read small requests whole, side by side, without the first `begun` tokens of each."""
    trees = [whole(one.read, begun) for one in requests]
    asked = [one.tree(tree) for one, tree in zip(requests, trees, strict=True)]
    found = model.trees(asked, behind=begun > 0)
    for one, tree, values in zip(requests, trees, found, strict=True):
        one.take(tree, values)


def _in_chunks(reading: Reading, ids: list[int], size: int) -> Iterator[None]:
    for start in range(0, len(ids), size):
        reading.add(ids[start : start + size], silent=True)
        yield
