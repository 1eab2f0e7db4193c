"""Embeddings and classifications from vLLM's pooling outputs."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any

from penstock.engines.vllm.front import Front
from penstock.engines.vllm.library import PoolingParams
from penstock.engines.vllm.translation.prompts import Prompts
from penstock.types import Classification, Classifications, Embeddings, Usage


async def embed(
    front: Front,
    prompts: Prompts,
    texts: Sequence[str | list[int]],
    dimensions: int | None,
    id: str,
) -> Embeddings:
    """One vector a text, or list of token ids. Passes on vLLM's errors."""
    rows, usage = await _pooled(front, prompts, texts, id, task="embed", dimensions=dimensions)
    return Embeddings(rows, usage)


async def classify(
    front: Front, prompts: Prompts, texts: Sequence[str], id: str
) -> Classifications:
    """One class a text, with all probabilities. Passes on vLLM's errors."""
    rows, usage = await _pooled(front, prompts, texts, id, task="classify")
    labels = getattr(front.config.model_config.hf_config, "id2label", None) or {}
    items = []
    for row in rows:
        best = max(range(len(row)), key=row.__getitem__)
        items.append(Classification(str(labels.get(best, best)), row))
    return Classifications(items, usage)


async def _pooled(
    front: Front, prompts: Prompts, texts: Sequence[str | list[int]], id: str, **params: Any
) -> tuple[list[list[float]], Usage]:
    pooling = PoolingParams(**params)
    pooling.verify(front.config.model_config)

    async def one(number: int, text: str | list[int]) -> Any:
        prompt = await prompts.completion(text)
        async with aclosing(front.llm.encode(prompt, pooling, f"{id}-{number}")) as outputs:
            async for output in outputs:
                last = output
        return last

    results = await asyncio.gather(*(one(number, text) for number, text in enumerate(texts)))
    return (
        [result.outputs.data.float().tolist() for result in results],
        Usage(prompt_tokens=sum(len(result.prompt_token_ids) for result in results)),
    )
