"""The model's own probabilities, read through the OpenVINO runtime: GenAI's pipeline gives one
number a token, and none for a cached prompt.

The model is loaded a second time, in f32, at its first use. Its graph is extended so that it gives
for each position asked for the log probability of the next token and of the most likely ones;
positions that nobody asks for cost no vocabulary. `BiasedPipeline` samples from these where a
request changes logits token by token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import openvino as ov
import openvino_genai as genai
from msgspec import Struct
from openvino import opset13 as ops

from penstock.engines.openvino.options import OpenVINOOptions
from penstock.errors import UnsupportedError
from penstock.types import Sampling

_CHUNK_NUMBERS = 1 << 23
"""Positions times vocabulary that one inference works on: 32 MiB of logits."""
_LARGEST_CHUNK = 256


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
    last layer is not found.
    """

    def __init__(self, path: str, options: OpenVINOOptions) -> None:
        core = ov.Core()
        model = core.read_model(path)
        self.vocabulary = _extend(model)
        self.inputs = {name for port in model.inputs for name in port.names}
        self.chunk = max(1, min(_LARGEST_CHUNK, _CHUNK_NUMBERS // self.vocabulary))
        properties = {
            **options.device_properties(),
            "INFERENCE_PRECISION_HINT": "f32",
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
            "KV_CACHE_PRECISION": "f32",
        }
        self._compiled = core.compile_model(model, "CPU", properties)

    def begin(self) -> Reading:
        """A new sequence, which has no tokens yet."""
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
        first = len(ids) - 1 if silent else 0
        following = [*ids[first + 1 :], 0]
        size = len(ids)
        feed: dict[str, Any] = {
            "input_ids": np.array([ids], np.int64),
            "attention_mask": np.ones((1, self.length + size), np.int64),
            "position_ids": np.arange(self.length, self.length + size, dtype=np.int64)[None],
            "beam_idx": np.zeros(1, np.int32),
            "penstock_rows": np.arange(first, size, dtype=np.int64),
            "penstock_following": np.array(following, np.int64)[:, None],
            "penstock_top": np.array(max(top, 1), np.int64),
        }
        self._request.infer({name: v for name, v in feed.items() if name in self._model.inputs})
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


def _score(logits: np.ndarray[Any, Any], token: int, top: int) -> TokenScore:
    largest = logits.max()
    logprobs = logits - largest - np.log(np.exp(logits - largest).sum())
    best = np.argsort(-logprobs, kind="stable")[:top]
    pairs = list(zip(best.tolist(), logprobs[best].tolist(), strict=True))
    rank = 1 + int((logprobs > logprobs[token]).sum())
    return TokenScore(token, float(logprobs[token]), rank, pairs)


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
    for parameter in (rows, following, top):
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
    model.add_parameters([rows, following, top])
    model.remove_result(result)
    for name, output in outputs.items():
        output.set_names({name})
        model.add_outputs([output])
    model.validate_nodes_and_infer_types()
    return int(size.get_length())


Row = np.ndarray[Any, Any]
_RUNNING = genai.GenerationStatus.RUNNING
_REASONS = genai.GenerationFinishReason


class Output(Struct):
    """What a step made, in the form of GenAI's `GenerationOutput`."""

    generated_ids: list[int]
    generated_log_probs: list[float]
    finish_reason: Any


class Handle:
    """One request, with the methods of GenAI's `GenerationHandle` that a lane uses."""

    def __init__(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        max_new_tokens: int,
        stops: set[int],
        bad_words: list[list[int]],
    ) -> None:
        self.unread = list(prompt)
        self.prompt = list(prompt)
        self.sampling = sampling
        self.max_new_tokens = max_new_tokens
        self.stops = stops
        self.bad_words = bad_words
        self.ids: list[int] = []
        self.reading: Reading | None = None
        self.random = np.random.default_rng(sampling.seed)
        self._status: Any = _RUNNING
        self._outputs: list[Output] = []

    def get_status(self) -> Any:
        return self._status

    def can_read(self) -> bool:
        return bool(self._outputs)

    def read(self) -> dict[int, Output]:
        return {0: self._outputs.pop(0)}

    def read_all(self) -> list[Output]:
        outputs, self._outputs = self._outputs, []
        return outputs

    def cancel(self) -> None:
        self._end(genai.GenerationStatus.CANCEL)

    def stop(self) -> None:
        self._end(genai.GenerationStatus.STOP)

    def take(self, token: int, logprob: float) -> None:
        """The next token was chosen."""
        self.ids.append(token)
        self.unread = [token]
        reason = _REASONS.NONE
        if token in self.stops and len(self.ids) > self.sampling.min_tokens:
            reason = _REASONS.STOP
        elif len(self.ids) >= self.max_new_tokens:
            reason = _REASONS.LENGTH
        self._outputs.append(Output([token], [logprob], reason))
        if reason != _REASONS.NONE:
            self._end(genai.GenerationStatus.FINISHED)

    def _end(self, status: Any) -> None:
        self._status, self.reading = status, None


def is_biased(sampling: Sampling) -> bool:
    """Whether a request's logits are changed token by token."""
    return bool(sampling.logit_bias or sampling.allowed_token_ids or sampling.bad_words)


class BiasedPipeline:
    """Requests that are sampled here, token by token: those with `logit_bias`, allowed or forbidden
    tokens, for which GenAI's pipeline has no place. `model` gives the loaded model, None while it
    loads.

    It stands in for GenAI's pipeline in a lane: the same handles, statuses and reasons. Its step
    gives each request one token, or reads one piece of its prompt.
    """

    def __init__(self, model: Callable[[], LogitModel | None]) -> None:
        self._model = model
        self._handles: list[Handle] = []

    def add(self, handle: Handle) -> Handle:
        self._handles.append(handle)
        return handle

    def get_metrics(self) -> Any:
        """As GenAI's: nothing of its cache is used here."""
        return _NoCache()

    def step(self) -> None:
        """One token for each request that runs, or one piece of its prompt."""
        self._handles = [handle for handle in self._handles if handle.get_status() == _RUNNING]
        for handle in self._handles:
            model = self._model()
            if model is None:
                return
            if handle.reading is None:
                handle.reading = model.begin()
            handle.reading.add(handle.unread[: model.chunk], silent=True)
            handle.unread = handle.unread[model.chunk :]
            if not handle.unread and handle.reading.after is not None:
                handle.take(*choose(handle.reading.after, handle))


class _NoCache(Struct):
    cache_usage: float = 0.0


def choose(logits: Row, handle: Handle) -> tuple[int, float]:
    """The next token and its log probability before any change, in the order of vLLM: bias,
    penalties, temperature, min_p, top_k, top_p.
    """
    sampling = handle.sampling
    changed = _biased(logits.astype(np.float64), handle)
    changed = _penalized(changed, handle)
    if sampling.temperature == 0:
        token = int(changed.argmax())
    else:
        chances = _filtered(changed / sampling.temperature, sampling)
        token = int(handle.random.choice(len(chances), p=chances))
    largest = logits.max()
    total = float(np.log(np.exp(logits - largest).sum()))
    return token, float(logits[token] - largest) - total


def _biased(logits: Row, handle: Handle) -> Row:
    sampling = handle.sampling
    if sampling.allowed_token_ids:
        allowed = np.full_like(logits, -np.inf)
        ids = np.array(sampling.allowed_token_ids)
        allowed[ids] = logits[ids]
        logits = allowed
    for word in handle.bad_words:
        if not word[:-1] or handle.ids[-len(word) + 1 :] == word[:-1]:
            logits[word[-1]] = -np.inf
    for token, value in sampling.logit_bias:
        logits[token] += value
    if len(handle.ids) < sampling.min_tokens:
        logits[list(handle.stops)] = -np.inf
    return logits


def _penalized(logits: Row, handle: Handle) -> Row:
    sampling = handle.sampling
    if sampling.repetition_penalty != 1.0:
        seen = np.unique(np.array(handle.prompt + handle.ids))
        values = logits[seen]
        penalty = sampling.repetition_penalty
        logits[seen] = np.where(values > 0, values / penalty, values * penalty)
    if handle.ids and (sampling.presence_penalty or sampling.frequency_penalty):
        made, counts = np.unique(np.array(handle.ids), return_counts=True)
        logits[made] -= sampling.presence_penalty + sampling.frequency_penalty * counts
    return logits


def _filtered(logits: Row, sampling: Sampling) -> Row:
    """Probabilities of what min_p, top_k and top_p leave."""
    chances = np.exp(logits - logits.max())
    chances /= chances.sum()
    if sampling.min_p > 0:
        chances[chances < sampling.min_p * chances.max()] = 0
    order = np.argsort(-chances, kind="stable")
    keep = len(order) if sampling.top_k <= 0 else sampling.top_k
    chances[order[keep:]] = 0
    if sampling.top_p < 1:
        sums = np.cumsum(chances[order] / chances.sum())
        chances[order[np.searchsorted(sums, sampling.top_p) + 1 :]] = 0
    result: Row = chances / chances.sum()
    return result
