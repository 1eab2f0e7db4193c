"""The model's own probabilities, read through the OpenVINO runtime: GenAI's pipeline gives one
number a token, and none for a cached prompt.

The model is loaded a second time at its first use: in f32 where log probabilities are asked, and in
the device's own precision for decisions. The engine's `properties` go before both. The graph is
extended so that it gives for each position asked for the log probability of the next token and of
the most likely ones; positions that nobody asks for cost no vocabulary.
"""

from __future__ import annotations

from collections.abc import Reversible, Sequence
from functools import cached_property, lru_cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakSet, proxy

import numpy as np
import openvino as ov

from penstock.engines.openvino.logits.graph import (
    bytes_a_token,
    extend,
    keep_attention_apart,
    take_mask,
)
from penstock.engines.openvino.model.files import TEXT_EMBEDDINGS, has_window, read_config
from penstock.engines.openvino.options import OpenVINOOptions
from penstock.errors import UnsupportedError

if TYPE_CHECKING:
    from penstock.engines.openvino.logits.merging import Merged, Merging

_LOGITS = 1 << 23
"""Numbers, 32 MiB, that one inference may make: of each position asked for, the vocabulary."""
_CHUNK = 256
_BATCH_WORK = 1 << 32
"""Tokens times bytes of weights that a batch works on: a small model reads more at once."""
_LARGEST_BATCH = 2048
_GROWTH = 256
"""Tokens by which a sequence can grow before another one has to give up its cache for it."""
_SEEING_INPUTS = {"inputs_embeds", "attention_mask", "position_ids", "beam_idx"}
"""What the language model of a vision-language model may read."""
_HIDDEN = -1e9
"""What a mask adds to the score of a token that another token must not see."""
EXACT: dict[str, Any] = {
    "INFERENCE_PRECISION_HINT": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
    "KV_CACHE_PRECISION": "f32",
}


class TokenScore(NamedTuple):
    """A token with its natural-log probability and rank (1 is the most likely), and the most likely
    pairs of token and log probability at its place.
    """

    token: int
    logprob: float
    rank: int
    top: list[tuple[int, float]]


class Tree(NamedTuple):
    """Tokens of which each follows one before it: `parents` has its place in `ids`, -1 for one that
    begins. `wanted` has the tokens whose log probabilities are asked for, by the place before them.
    """

    ids: Sequence[int]
    parents: Sequence[int]
    wanted: dict[int, list[int]]


class LogitModel:
    """One model, compiled to give log probabilities. Raises `UnsupportedError` for a graph whose
    last layer is not found. `takes_trees`: it reads token trees, and not just sequences. `exact`:
    in f32; else in the device's own precision. `grows`: it is fast where one token follows others;
    else where many do.

    `chunk`: the tokens that one sequence reads at once. `batch`: those of trees side by side, with
    what fills the shorter ones up. `asked`: the positions of all these that may be asked for, as
    each makes as many numbers as there are tokens to choose from. `planes`: how many positions a
    token has, 0 for its place alone.
    """

    def __init__(
        self, path: str, options: OpenVINOOptions, exact: bool = True, grows: bool = True
    ) -> None:
        core = ov.Core()
        model = core.read_model(path)
        self.planes = 0
        self._folder = Path(path).parent
        # A window is in the mask that would be replaced.
        self.takes_trees = not has_window(read_config(self._folder)) and take_mask(model)
        if self.takes_trees and not grows:
            keep_attention_apart(model)
        self.vocabulary = extend(model)
        self.inputs = {name for port in model.inputs for name in port.names}
        # As many tokens as the pipeline's own KV cache may take the memory for.
        self._room = options.kv_cache_memory_bytes // max(bytes_a_token(model), 1)
        self._begun: WeakSet[Reading] = WeakSet()
        self.chunk = _CHUNK
        self.asked = max(1, min(_LARGEST_BATCH, _LOGITS // self.vocabulary))
        weights = Path(path).with_suffix(".bin").stat().st_size
        self.batch = max(self.chunk, min(_LARGEST_BATCH, _BATCH_WORK // max(weights, 1)))
        known = set(core.get_property("CPU", "SUPPORTED_PROPERTIES"))
        properties = {
            **options.device_properties(),
            **(EXACT if exact else {}),
            # Others are of GenAI's pipeline.
            **{name: value for name, value in options.properties.items() if name in known},
        }
        self._properties = properties
        self._compiled = core.compile_model(model, "CPU", properties)
        self._short: Reading | None = None
        self._behind: Reading | None = None
        self._before: Sequence[int] = ()
        self._mark: Mark | None = None
        if "inputs_embeds" in self.inputs:
            self._take_embeddings(core, model)

    def _take_embeddings(self, core: Any, model: Any) -> None:
        """Prepare for a model that reads embeddings, as its other files make them."""
        given = {name for name in self.inputs if not name.startswith("penstock_")}
        if unknown := sorted(given - _SEEING_INPUTS):
            raise UnsupportedError(
                f"no decisions are made by this vision-language model, which reads"
                f" {' and '.join(unknown)}: ask it for an answer with a json_schema"
            )
        self._width = model.input("inputs_embeds").get_partial_shape()[-1].get_length()
        if len(shape := model.input("position_ids").get_partial_shape()) == 3:
            self.planes = shape[0].get_length()
        self._words = core.compile_model(
            core.read_model(self._folder / TEXT_EMBEDDINGS), "CPU", self._properties
        )
        self._scale = read_config(self._folder).get("scale_emb", 1)

    def embedded(self, ids: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """What a vision-language model reads of token ids: shape [rows, tokens, width]."""
        found: np.ndarray[Any, Any] = self._words(ids)[0] * np.float32(self._scale)
        return found

    @cached_property
    def merging(self) -> Merging:
        """Makes what a vision-language model reads of texts with images. Loaded at first use."""
        from penstock.engines.openvino.logits.merging import Merging

        return Merging(self._folder, self._properties, self._width, self.planes)

    def begin(self) -> Reading:
        """A new sequence, without tokens yet."""
        return Reading(self, self._compiled.create_infer_request())

    def begin_if_fits(self, tokens: int) -> Reading | None:
        """A new sequence of so many tokens, which may grow; None while the KV caches of others
        leave no room. Alone it always fits.
        """
        if self._begun and self._held + tokens + _GROWTH > self._room:
            return None
        reading = self.begin()
        reading.expected = tokens
        self._begun.add(reading)
        return reading

    def make_room(self, users: Reversible[Any]) -> None:
        """While this `is_over`, let those `users` of readings that came last give up their KV
        caches.
        """
        for user in reversed(users) if self.is_over else ():
            if user.reading is not None and self.is_over:
                user.give_up()

    @property
    def is_over(self) -> bool:
        """Whether the KV caches of several sequences have outgrown their room together."""
        return len(self._begun) > 1 and self._held > self._room

    @property
    def _held(self) -> int:
        return sum(max(one.length, one.expected) for one in self._begun)

    def rows(self, length: int) -> int:
        """How many sequences of this length have KV caches at once."""
        return max(1, self._room // length)

    def go_behind(self, before: Sequence[int]) -> bool:
        """Read the next chunk of the tokens that trees are behind. Returns whether all of them are
        read: they stay so until others are named.
        """
        if before != self._before or self._behind is None:
            self._behind, self._before, self._mark = self._new(), before, None
        if self._mark is None:
            start = self._behind.length
            self._behind.add(before[start : start + self.chunk], silent=True)
            if self._behind.length == len(before):
                self._mark = self._behind.mark()
        return self._mark is not None

    def trees(self, trees: Sequence[Tree], behind: bool = False) -> list[dict[int, list[float]]]:
        """Read trees side by side, nothing before them, or `behind` what was read by `go_behind`.
        Returns what each wants, by its places.
        """
        if behind and self._behind is not None:
            self._behind.back(self._mark)
            return self._behind.trees(trees)
        self._short = self._short or self._new()
        self._short.back(None)
        return self._short.trees(trees)

    def _new(self) -> Reading:
        """One for here. Without a proxy the two would hold each other, and outlive their use."""
        return Reading(proxy(self), self._compiled.create_infer_request())


class Reading:
    """One sequence as the model reads it, with a KV cache of its own.

    `after` has shape [vocabulary]: the logits of the token that follows; None before the first
    token.
    """

    def __init__(self, model: LogitModel, request: Any) -> None:
        self._model = model
        self._request = request
        self.length = self.expected = self._ahead = 0
        self.after: np.ndarray[Any, Any] | None = None

    def see(self, head: Merged) -> None:
        """Read at most `LogitModel.chunk` more tokens of a text with images."""
        size = len(head)
        mask = _causal_mask(1, self.length, size)
        positions = head.positions[:, None] if self._model.planes else head.positions
        self._infer(head.embeddings[None], positions, mask, [size - 1], [0], 0)
        self._go_on(size)
        self._ahead = head.ahead

    def add(self, ids: Sequence[int], top: int = 0, silent: bool = False) -> list[TokenScore]:
        """Read at most `LogitModel.chunk` more tokens and return the score of each, with `top`
        alternatives.

        The very first token of the sequence follows nothing, and has no score. With `silent` none
        are made.
        """
        scores: list[TokenScore] = []
        if not silent and self.after is not None:
            scores.append(score(self.after, ids[0], top))
        size = len(ids)
        first = size - 1 if silent else 0
        following = [*ids[first + 1 :], 0]
        positions = self._positions(np.arange(size)[None])
        mask = _causal_mask(1, self.length, size)
        rows = list(range(first, size))
        self._infer(np.array([ids], np.int64), positions, mask, rows, following, top)
        self._go_on(size)
        get = self._request.get_tensor
        chosen = get("penstock_chosen").data.reshape(-1)[: len(following) - 1].tolist()
        ranks = get("penstock_ranks").data.reshape(-1).tolist()
        values = get("penstock_top_values").data.tolist()
        names = get("penstock_top_ids").data.tolist()
        for row, (token, logprob) in enumerate(zip(following, chosen, strict=False)):
            pairs = list(zip(names[row], values[row], strict=True)) if top else []
            scores.append(TokenScore(token, logprob, ranks[row], pairs))
        return scores

    def trees(self, trees: Sequence[Tree]) -> list[dict[int, list[float]]]:
        """Read trees behind the sequence, side by side; the longest times their number is at most
        `LogitModel.batch` tokens.

        Returns for each the log probabilities of the tokens that it wants, by their places. Then go
        `back`: what the sequence was cannot be read on.
        """
        size = max(len(tree.ids) for tree in trees)
        ids = np.zeros((len(trees), size), np.int64)
        positions = np.zeros((len(trees), size), np.int64)
        mask = _causal_mask(len(trees), self.length, size)
        rows: list[int] = []
        wanted: list[list[int]] = []
        for number, tree in enumerate(trees):
            length = len(tree.ids)
            ids[number, :length] = tree.ids
            depths = _hide(tree.parents, mask[number, 0, :length, self.length :])
            positions[number, :length] = depths
            rows += [number * size + place for place in tree.wanted]
            wanted += tree.wanted.values()
        widest = max(map(len, wanted))
        following = [[*tokens, *[0] * (widest - len(tokens))] for tokens in wanted]
        self._infer(ids, self._positions(positions), mask, rows, [0] * len(rows), 0, following)
        found = iter(self._request.get_tensor("penstock_wanted_logprobs").data.tolist())
        return [
            {place: next(found)[: len(tokens)] for place, tokens in tree.wanted.items()}
            for tree in trees
        ]

    def _go_on(self, size: int) -> None:
        self.length += size
        self.after = self._request.get_tensor("penstock_after").data.reshape(-1).copy()

    def _positions(self, behind: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Positions of tokens by their places `behind` the sequence, shape [rows, tokens]."""
        positions = behind + (self.length + self._ahead)
        planes = self._model.planes
        return np.repeat(positions[None], planes, 0) if planes else positions

    def _infer(
        self,
        ids: np.ndarray[Any, Any],
        positions: np.ndarray[Any, Any],
        mask: np.ndarray[Any, Any],
        rows: list[int],
        following: list[int],
        top: int,
        wanted: list[list[int]] | None = None,
    ) -> None:
        # All go on from the one sequence; where there is none, each begins by itself.
        beams = np.zeros(len(ids)) if self.length else np.arange(len(ids))
        if "inputs_embeds" in self._model.inputs and ids.dtype == np.int64:
            ids = self._model.embedded(ids)
        feed: dict[str, Any] = {
            "input_ids": ids,
            "inputs_embeds": ids,
            "attention_mask": np.ones((len(ids), mask.shape[-1]), np.int64),
            "position_ids": positions,
            "beam_idx": beams.astype(np.int32),
            "penstock_rows": np.array(rows, np.int64),
            "penstock_following": np.array(following, np.int64)[:, None],
            "penstock_top": np.array(max(top, 1), np.int64),
            "penstock_wanted": np.array(wanted or [[0]] * len(rows), np.int64),
            "penstock_mask": mask,
            "penstock_one": np.array(1, np.float32),
        }
        self._request.infer({name: v for name, v in feed.items() if name in self._model.inputs})

    def mark(self) -> Mark:
        """The place of the reading now, for `back`."""
        states = [state.state.data.copy() for state in self._request.query_state()]
        return Mark(self.length, self.after, states)

    def back(self, mark: Mark | None) -> None:
        """Forget what was read after the mark, or all without one."""
        if mark is None:
            self._request.reset_state()
            self.length, self.after = 0, None
            return
        for state, data in zip(self._request.query_state(), mark.states, strict=True):
            state.state = ov.Tensor(data)
        self.length, self.after = mark.length, mark.after


class Mark(NamedTuple):
    """A place in a sequence that is read, with the KV cache up to it."""

    length: int
    after: np.ndarray[Any, Any] | None
    states: list[np.ndarray[Any, Any]]


def _causal_mask(rows: int, length: int, size: int) -> np.ndarray[Any, Any]:
    """The mask of `size` tokens behind `length` others, shape [rows, 1, size, length + size]: each
    sees all before it.
    """
    mask = np.zeros((rows, 1, size, length + size), np.float32)
    mask[..., length:] = _triangle(size + -size % _CHUNK)[:size, :size]
    return mask


@lru_cache(2)  # a long text is read in chunks of one size, and its tree has another
def _triangle(size: int) -> np.ndarray[Any, Any]:
    """The mask of `size` tokens of which each sees itself and those before it."""
    return np.triu(np.full((size, size), _HIDDEN, np.float32), 1)


def _hide(parents: Sequence[int], mask: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Let the tokens of a tree see just those that lead to them: `mask`, shape [tokens, tokens or
    more], in which each sees all before it. Returns how many tokens lead to each.
    """
    size = len(parents)
    depths = np.arange(size)
    begun = [at for at in range(size) if parents[at] != at - 1]  # all but these follow the last
    for start, end in pairwise([*begun, size]):
        parent = parents[start]
        mask[start:end, :start] = mask[parent, :start] if parent >= 0 else _HIDDEN
        depths[start:end] -= start - (depths[parent] + 1 if parent >= 0 else 0)
    return depths


def log_softmax(logits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Natural-log probabilities of logits, shape [vocabulary]."""
    shifted = logits - logits.max()
    found: np.ndarray[Any, Any] = shifted - np.log(np.exp(shifted).sum())
    return found


def score(logits: np.ndarray[Any, Any], token: int, top: int) -> TokenScore:
    """A token's score by the logits of its place, shape [vocabulary], with `top` alternatives."""
    logprobs = log_softmax(logits)
    best = np.argsort(-logprobs, kind="stable")[:top]
    pairs = list(zip(best.tolist(), logprobs[best].tolist(), strict=True))
    rank = 1 + int((logprobs > logprobs[token]).sum())
    return TokenScore(token, float(logprobs[token]), rank, pairs)
