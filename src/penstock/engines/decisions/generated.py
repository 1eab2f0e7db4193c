"""Probabilities of labels from an engine that generates: one token for each place where labels
part, with the log probabilities of the tokens that labels go on with.

The engine's prefix cache shares the input: the first request computes it, the others follow.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from penstock.engines.decisions.prompts import RequestTexts
from penstock.engines.decisions.tokens import Encode, tokenized
from penstock.engines.decisions.trie import Path, Shares, shares
from penstock.engines.tasks import Tasks, generated
from penstock.openai.responses import Answers
from penstock.types import CompletionRequest, DecideRequest, Sampling, Usage

MOST_IDS = 128
"""Tokens whose log probabilities vLLM gives in one request."""


async def generated_shares(
    model: Tasks, texts: RequestTexts, request: DecideRequest, encode: Encode
) -> tuple[list[Shares], Usage]:
    """The shares of each branch's labels. `model` honours `logprob_token_ids`."""
    read = tokenized(texts, request.questions, encode)
    cached = 0

    async def ask(number: int, place: Path, tokens: Sequence[int]) -> list[float]:
        nonlocal cached
        extra = {"logprob_token_ids": list(tokens)}
        sampling = Sampling(max_tokens=1, temperature=0.0, logprobs=0, extra=extra)
        prompt = [*read.ids, *read.branches[number].stem, *place]
        completion = CompletionRequest(
            prompt, sampling, adapter=request.adapter, stream=False, prompt_token_ids=prompt
        )
        answers = await Answers.of(generated(model, completion))
        cached = max(cached, answers.usage.cached_tokens)
        (first,) = answers.logprobs[0]
        known = dict(zip(first.top_ids, (value for _, value in first.top), strict=True))
        return [known[token] for token in tokens]

    asked = [
        (number, place, parting[start : start + MOST_IDS])
        for number, branch in enumerate(read.branches)
        for place, parting in branch.trie.parting.items()
        for start in range(0, len(parting), MOST_IDS)
    ]
    found = [await ask(*asked[0])]
    found += await asyncio.gather(*(ask(*one) for one in asked[1:]))
    known: list[dict[Path, list[float]]] = [{} for _ in read.branches]
    for (number, place, _), values in zip(asked, found, strict=True):
        known[number].setdefault(place, []).extend(values)
    each = [shares(branch.trie, one) for branch, one in zip(read.branches, known, strict=True)]
    return each, Usage(read.size, 0, min(cached, len(read.ids)))
