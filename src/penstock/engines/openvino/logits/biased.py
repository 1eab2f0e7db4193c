"""Sampling of our own, for requests whose logits are changed token by token: `logit_bias`, allowed
and forbidden tokens. GenAI's pipeline has no place for these.

A `BiasedPipeline` stands in for GenAI's pipeline in a lane: the same handles, statuses and reasons.
Its step gives each request one token, or reads one piece of its prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import openvino_genai as genai
from msgspec import Struct

from penstock.engines.openvino.logits.model import LogitModel, Reading, TokenScore, score
from penstock.types import Sampling

Row = np.ndarray[Any, Any]
_RUNNING = genai.GenerationStatus.RUNNING
_REASONS = genai.GenerationFinishReason


class Output(Struct):
    """What a step made, in the form of GenAI's `GenerationOutput`, but with whole scores, where
    they are asked for.
    """

    generated_ids: list[int]
    generated_log_probs: list[TokenScore]
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
        self.allowed = np.array(sampling.allowed_token_ids, dtype=np.int64)
        self.biased = np.array([token for token, _ in sampling.logit_bias], dtype=np.int64)
        self.bias = np.array([value for _, value in sampling.logit_bias])
        self.ids: list[int] = []
        self.reading: Reading | None = None
        seed = sampling.seed  # any whole number, as the pipeline takes it
        self.random = np.random.default_rng(None if seed is None else seed % 2**31)
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

    def take(self, token: int, logits: Row) -> None:
        """The next token was chosen. Its scores are by the `logits` before any change."""
        self.ids.append(token)
        self.unread = [token]
        reason = _REASONS.NONE
        if token in self.stops and len(self.ids) > self.sampling.min_tokens:
            reason = _REASONS.STOP
        elif len(self.ids) >= self.max_new_tokens:
            reason = _REASONS.LENGTH
        top = self.sampling.logprobs
        scores = [] if top is None else [score(logits, token, top)]
        self._outputs.append(Output([token], scores, reason))
        if reason != _REASONS.NONE:
            self._end(genai.GenerationStatus.FINISHED)

    def end(self) -> None:
        """No token may follow."""
        self._outputs.append(Output([], [], _REASONS.STOP))
        self._end(genai.GenerationStatus.FINISHED)

    def give_up(self) -> None:
        """Give up the KV cache: what was read is read again."""
        self.reading, self.unread = None, self.prompt + self.ids

    def _end(self, status: Any) -> None:
        self._status, self.reading = status, None


class BiasedPipeline:
    """Requests that are sampled here, token by token. `model` gives the loaded model, None while it
    loads.
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
        is_full = False
        for handle in self._handles:
            model = self._model()
            if model is None:
                return
            if handle.reading is None and not is_full:
                handle.reading = model.begin_if_fits(len(handle.unread))
            if handle.reading is None:
                is_full = True  # and the others wait behind it
                continue
            handle.reading.add(handle.unread[: model.chunk], silent=True)
            handle.unread = handle.unread[model.chunk :]
            model.make_room(self._handles)
            if handle.reading is None:
                continue
            if not handle.unread and handle.reading.after is not None:
                logits = handle.reading.after
                chosen = choose(logits, handle)
                handle.end() if chosen is None else handle.take(chosen, logits)


class _NoCache(Struct):
    cache_usage: float = 0.0


def choose(logits: Row, handle: Handle) -> int | None:
    """The next token, after the changes in the order of vLLM: bias, penalties, temperature, min_p,
    top_k, top_p. None if the request allows no token.
    """
    sampling = handle.sampling
    changed = _biased(logits.astype(np.float64), handle)
    changed = _penalized(changed, handle)
    if not np.isfinite(changed).any():
        return None
    if sampling.temperature == 0:
        return int(changed.argmax())
    chances = _filtered(changed / sampling.temperature, sampling)
    return int(handle.random.choice(len(chances), p=chances))


def _biased(logits: Row, handle: Handle) -> Row:
    sampling = handle.sampling
    if len(handle.allowed):
        allowed = np.full_like(logits, -np.inf)
        allowed[handle.allowed] = logits[handle.allowed]
        logits = allowed
    for word in filter(None, handle.bad_words):
        if not word[:-1] or handle.ids[-len(word) + 1 :] == word[:-1]:
            logits[word[-1]] = -np.inf
    np.add.at(logits, handle.biased, handle.bias)  # an id may stand there twice, as 4 and 04
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
