"""The model's own probabilities, read through the OpenVINO runtime: GenAI's pipeline gives one
number a token, and none for a cached prompt.

The model is loaded a second time at its first use, in f32 unless the engine's `properties` say
otherwise. Its graph is extended so that it gives for each position asked for the log probability of
the next token and of the most likely ones; positions that nobody asks for cost no vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import openvino as ov
from openvino import opset13 as ops

from penstock.engines.openvino.options import OpenVINOOptions
from penstock.errors import UnsupportedError

_CHUNK_NUMBERS = 1 << 23
"""Positions times vocabulary that one inference works on: 32 MiB of logits."""
_LARGEST_CHUNK = 256
_ATTENTION, _MASK = "ScaledDotProductAttention", 3
HIDDEN = np.finfo(np.float32).min
"""In a mask, added to the score of a token that another one must not see."""


class TokenScore(NamedTuple):
    """A token with its natural-log probability and rank (1 is the most likely), and the most likely
    pairs of token and log probability at its place.
    """

    token: int
    logprob: float
    rank: int
    top: list[tuple[int, float]]


class LogitModel:
    """One model, compiled to give log probabilities. Raises `UnsupportedError` for a graph whose
    last layer is not found. `takes_trees`: it reads token trees, and not just sequences.
    """

    def __init__(self, path: str, options: OpenVINOOptions) -> None:
        core = ov.Core()
        model = core.read_model(path)
        self.takes_trees = _take_mask(model)
        self.vocabulary = _extend(model)
        self.inputs = {name for port in model.inputs for name in port.names}
        self.chunk = max(1, min(_LARGEST_CHUNK, _CHUNK_NUMBERS // self.vocabulary))
        known = set(core.get_property("CPU", "SUPPORTED_PROPERTIES"))
        properties = {
            **options.device_properties(),
            "INFERENCE_PRECISION_HINT": "f32",
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
            "KV_CACHE_PRECISION": "f32",
            # Others are of GenAI's pipeline.
            **{name: value for name, value in options.properties.items() if name in known},
        }
        self._compiled = core.compile_model(model, "CPU", properties)

    def begin(self) -> Reading:
        """A new sequence, without tokens yet."""
        return Reading(self, self._compiled.create_infer_request())


class Reading:
    """One sequence as the model reads it, with a KV cache of its own.

    `after` has shape [vocabulary]: the logits of the token that follows; None before the first
    token.
    """

    def __init__(self, model: LogitModel, request: Any) -> None:
        self._model = model
        self._request = request
        self.length = 0
        self.after: np.ndarray[Any, Any] | None = None

    def add(self, ids: Sequence[int], top: int = 0, silent: bool = False) -> list[TokenScore]:
        """Read at most `LogitModel.chunk` more tokens and return the score of each, with `top`
        alternatives.

        The very first token of the sequence follows nothing, and has no score. With `silent` none
        are made.
        """
        scores: list[TokenScore] = []
        if not silent and self.after is not None:
            scores.append(_score(self.after, ids[0], top))
        size = len(ids)
        first = size - 1 if silent else 0
        following = [*ids[first + 1 :], 0]
        positions = np.arange(self.length, self.length + size)
        mask = np.zeros((size, self.length + size), np.float32)
        mask[:, self.length :][np.triu_indices(size, 1)] = HIDDEN
        self._infer(ids, positions, mask, list(range(first, size)), following, top)
        self.length += size
        get = self._request.get_tensor
        self.after = get("penstock_after").data.reshape(-1).copy()
        chosen = get("penstock_chosen").data.reshape(-1)[: len(following) - 1].tolist()
        ranks = get("penstock_ranks").data.reshape(-1).tolist()
        values = get("penstock_top_values").data.tolist()
        names = get("penstock_top_ids").data.tolist()
        for row, (token, logprob) in enumerate(zip(following, chosen, strict=False)):
            pairs = list(zip(names[row], values[row], strict=True)) if top else []
            scores.append(TokenScore(token, logprob, ranks[row], pairs))
        return scores

    def tree(
        self, ids: Sequence[int], parents: Sequence[int], wanted: Mapping[int, Sequence[int]]
    ) -> dict[int, list[float]]:
        """Read a tree of at most `LogitModel.chunk` tokens behind the sequence, once.

        `parents` has the place of each token's predecessor in `ids`, which is before it; -1: the
        sequence itself. Returns the log probabilities of the tokens `wanted` after a place. Then go
        `back`: what the sequence was cannot be read on.
        """
        size = len(ids)
        mask = np.full((size, self.length + size), HIDDEN, np.float32)
        mask[:, : self.length] = 0
        positions = np.empty(size, np.int64)
        for place, parent in enumerate(parents):
            positions[place] = self.length
            if parent >= 0:
                positions[place] = positions[parent] + 1
                mask[place, self.length :] = mask[parent, self.length :]
            mask[place, self.length + place] = 0
        rows = list(wanted)
        widest = max(map(len, wanted.values()))
        following = [[*wanted[row], *[0] * (widest - len(wanted[row]))] for row in rows]
        self._infer(ids, positions, mask, rows, [0] * len(rows), 0, following)
        found = self._request.get_tensor("penstock_wanted_logprobs").data.tolist()
        return {row: one[: len(wanted[row])] for row, one in zip(rows, found, strict=True)}

    def _infer(
        self,
        ids: Sequence[int],
        positions: np.ndarray[Any, Any],
        mask: np.ndarray[Any, Any],
        rows: list[int],
        following: list[int],
        top: int,
        wanted: list[list[int]] | None = None,
    ) -> None:
        feed: dict[str, Any] = {
            "input_ids": np.array([ids], np.int64),
            "attention_mask": np.ones((1, mask.shape[1]), np.int64),
            "position_ids": positions[None],
            "beam_idx": np.zeros(1, np.int32),
            "penstock_rows": np.array(rows, np.int64),
            "penstock_following": np.array(following, np.int64)[:, None],
            "penstock_top": np.array(max(top, 1), np.int64),
            "penstock_wanted": np.array(wanted or [[0]] * len(rows), np.int64),
            "penstock_mask": mask[None, None],
        }
        self._request.infer({name: v for name, v in feed.items() if name in self._model.inputs})

    def mark(self) -> Mark:
        """Where the reading is, to go `back` there."""
        states = [state.state.data.copy() for state in self._request.query_state()]
        return Mark(self.length, self.after, states)

    def back(self, mark: Mark) -> None:
        """Forget what was read after the mark."""
        for state, data in zip(self._request.query_state(), mark.states, strict=True):
            state.state = ov.Tensor(data)
        self.length, self.after = mark.length, mark.after


class Mark(NamedTuple):
    """A place in a sequence that is read, with the KV cache up to it."""

    length: int
    after: np.ndarray[Any, Any] | None
    states: list[np.ndarray[Any, Any]]


def log_softmax(logits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Natural-log probabilities of logits, shape [vocabulary]."""
    shifted = logits - logits.max()
    found: np.ndarray[Any, Any] = shifted - np.log(np.exp(shifted).sum())
    return found


def _score(logits: np.ndarray[Any, Any], token: int, top: int) -> TokenScore:
    logprobs = log_softmax(logits)
    best = np.argsort(-logprobs, kind="stable")[:top]
    pairs = list(zip(best.tolist(), logprobs[best].tolist(), strict=True))
    rank = 1 + int((logprobs > logprobs[token]).sum())
    return TokenScore(token, float(logprobs[token]), rank, pairs)


def _take_mask(model: Any) -> bool:
    """Let the attention mask be an input, which may hold a tree.

    Returns False, and changes nothing, for a graph whose layers do not share one mask.
    """
    layers = [one for one in model.get_ops() if one.get_type_name() == _ATTENTION]
    if not layers or any(
        one.get_input_size() <= _MASK or one.get_attributes().get("causal") for one in layers
    ):
        return False
    if len({one.input_value(_MASK).get_node().get_friendly_name() for one in layers}) > 1:
        return False
    mask = ops.parameter([-1, 1, -1, -1], np.float32, name="penstock_mask")
    mask.output(0).set_names({"penstock_mask"})
    for one in layers:
        one.input(_MASK).replace_source_output(mask.output(0))
    model.add_parameters([mask])
    return True


def _extend(model: Any) -> int:
    """Let the graph end in log probabilities of chosen rows. Returns the vocabulary's size."""
    result = model.output("logits").get_node()
    head = result.input_value(0).get_node()
    while head.get_type_name() != "MatMul":
        if head.get_type_name() not in ("Convert", "Multiply", "Divide", "Tanh", "Add"):
            raise UnsupportedError("log probabilities cannot be read from this model's graph")
        data = [
            value.get_node()
            for value in head.input_values()
            if value.get_node().get_type_name() != "Constant"
        ]
        head = data[0]
    rows = ops.parameter([-1], np.int64, name="penstock_rows")
    following = ops.parameter([-1, 1], np.int64, name="penstock_following")
    top = ops.parameter([], np.int64, name="penstock_top")
    wanted = ops.parameter([-1, -1], np.int64, name="penstock_wanted")
    for parameter in (rows, following, top, wanted):
        parameter.output(0).set_names({parameter.get_friendly_name()})
    axis = ops.constant(1, np.int64)
    head.input(0).replace_source_output(ops.gather(head.input_value(0), rows, axis).output(0))
    logits = ops.squeeze(ops.convert(result.input_value(0), np.float32), ops.constant(0, np.int64))
    logprobs = ops.log_softmax(logits, -1)
    best = ops.topk(logprobs, top, -1, "max", "value", index_element_type="i64")
    chosen = ops.gather_elements(logprobs, following, 1)
    better = ops.convert(ops.greater(logprobs, chosen), np.int32)
    outputs = {
        "penstock_chosen": chosen.output(0),
        "penstock_wanted_logprobs": ops.gather_elements(logprobs, wanted, 1).output(0),
        "penstock_ranks": ops.add(
            ops.reduce_sum(better, np.array([1])), ops.constant(1, np.int32)
        ).output(0),
        "penstock_top_values": best.output(0),
        "penstock_top_ids": best.output(1),
        "penstock_after": ops.gather(
            logits, ops.constant([-1], np.int64), ops.constant(0, np.int64)
        ).output(0),
    }
    size = result.input_value(0).get_partial_shape()[-1]
    if size.is_dynamic:
        raise UnsupportedError("log probabilities cannot be read from this model's graph")
    model.add_parameters([rows, following, top, wanted])
    model.remove_result(result)
    for name, output in outputs.items():
        output.set_names({name})
        model.add_outputs([output])
    model.validate_nodes_and_infer_types()
    return int(size.get_length())
