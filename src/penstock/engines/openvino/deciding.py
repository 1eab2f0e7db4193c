"""Probabilities of labels, read through the OpenVINO runtime."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from penstock.engines.decisions.prompts import Asked
from penstock.engines.decisions.tokens import tokenized
from penstock.engines.decisions.trie import Path, Shares, shares
from penstock.engines.openvino.logits import LogitModel, Reading
from penstock.engines.openvino.pipeline import Tokenizer
from penstock.errors import context_overflow
from penstock.types import Question, Usage


def decide(
    model: LogitModel,
    tokenizer: Tokenizer,
    context_length: int,
    texts: Any,
    questions: Any,
) -> tuple[list[Shares], Usage]:
    """The shares of each branch's labels. The head is read once."""
    asked = msgspec.convert(texts, Asked)
    each = msgspec.convert(questions, list[Question])
    read = tokenized(asked, each, tokenizer.encode)
    longest = max(len(b.stem) + max(map(len, b.trie.paths)) for b in read.branches)
    if len(read.ids) + longest > context_length:
        raise context_overflow(context_length, len(read.ids) + longest)
    reading = model.begin()
    _read(reading, read.ids, model.chunk)
    head = reading.mark()
    found = []
    for branch in read.branches:
        logprobs: dict[Path, list[float]] = {}
        for place, tokens in branch.trie.parting.items():
            reading.back(head)
            _read(reading, [*branch.stem, *place], model.chunk)
            logprobs[place] = _logprobs(reading.after, tokens)
        found.append(shares(branch.trie, logprobs))
    return found, Usage(read.size)


def _read(reading: Reading, ids: list[int], chunk: int) -> None:
    for start in range(0, len(ids), chunk):
        reading.add(ids[start : start + chunk], silent=True)


def _logprobs(logits: Any, tokens: tuple[int, ...]) -> list[float]:
    wide = logits.astype(np.float64)
    largest = wide.max()
    total = largest + np.log(np.exp(wide - largest).sum())
    return [float(wide[token] - total) for token in tokens]
