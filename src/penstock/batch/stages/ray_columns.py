"""The columns that `ray.data.llm` has beside ours, made if `ray_columns` asks for them."""

from __future__ import annotations

import itertools
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from penstock.engines.base import LLMEngine
from penstock.errors import UnsupportedError
from penstock.types import ChatRequest, CompletionRequest, TokenizeRequest, TokenLogprob

INFERENCE_ERROR = "__inference_error__"
"""Why a row failed; empty in a good one."""


def of_worker() -> dict[str, Any]:
    """The columns that are the same for all rows of a worker: rows move on one by one, so these
    are one batch.
    """
    return {"batch_uuid": uuid.uuid4().hex, INFERENCE_ERROR: ""}


class RayColumns:
    """Ray's columns for the rows of one worker. `request_id` counts them from 0."""

    def __init__(self) -> None:
        self._numbers = itertools.count()
        self._of_worker = of_worker()

    def about(self) -> dict[str, Any]:
        """The columns that every answered row has."""
        return {"request_id": next(self._numbers), **self._of_worker}

    async def of_answer(
        self,
        engine: LLMEngine,
        request: ChatRequest | CompletionRequest,
        columns: Mapping[str, Any],
        began: float,
    ) -> dict[str, Any]:
        """The columns of generated text. `began` is when the row was asked, by `perf_counter`."""
        if isinstance(request, ChatRequest):
            asked: TokenizeRequest | list[int] = TokenizeRequest(chat=request)
        elif isinstance(request.prompt, str):
            special = request.special_tokens
            asked = TokenizeRequest(prompt=request.prompt, special_tokens=special)
        else:
            asked = request.prompt
        seconds = time.perf_counter() - began
        # Ray counts the first answer; an engine that names no tokens has none to count.
        count = len(columns["generated_tokens"]) or columns["num_generated_tokens"]
        return {
            "num_generated_tokens": count,
            "prompt": columns["prompt"] or "",
            "prompt_token_ids": await _ids(engine, asked),
            "params": str(request.sampling),
            "embeddings": None,
            # The names are those of vLLM; what only vLLM's scheduler knows is None.
            "metrics": {
                "num_generation_tokens": count,
                "arrival_time": time.time() - seconds,
                "queued_ts": None,
                "scheduled_ts": None,
                "first_token_ts": None,
                "last_token_ts": time.monotonic(),
                "first_token_latency": None,
                "is_corrupted": False,
            },
            **self.about(),
        }

    async def of_vector(
        self, engine: LLMEngine, row: Mapping[str, Any], columns: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The columns of a row whose text is not continued."""
        prompt = columns.get("prompt") or row.get("prompt") or ""
        given = row.get("tokenized_prompt")
        asked = TokenizeRequest(prompt=prompt, special_tokens=True)
        ids = await _ids(engine, asked if given is None else list(given))
        return {
            "generated_tokens": [],
            "generated_text": "",
            "num_generated_tokens": 0,
            "metrics": None,
            "logprobs": None,
            "prompt_logprobs": None,
            **_with_array(columns),
            "prompt": prompt,
            "prompt_token_ids": ids if prompt or given is not None else None,
            "params": str(dict(row.get("pooling_params") or {})),
            **self.about(),
        }


def _with_array(columns: Mapping[str, Any]) -> Mapping[str, Any]:
    """The columns of a vector, or of one a token, as the array that Ray has."""
    vector = columns.get("embeddings")
    if not isinstance(vector, list):
        return columns
    import numpy as np  # imported only where it is used

    return {**columns, "embeddings": np.array(vector, np.float32)}


async def _ids(engine: LLMEngine, asked: TokenizeRequest | list[int]) -> list[int] | None:
    """The token ids of a prompt; None if the engine has no tokenizer."""
    if not isinstance(asked, TokenizeRequest):
        return asked
    try:
        return (await engine.tokens(asked)).ids
    except UnsupportedError:
        return None


def logprobs_by_id(
    tokens: Iterable[TokenLogprob] | None,
) -> list[dict[int | str, Any] | None] | None:
    """Log probabilities in vLLM's form: for each token a dict from token id to `logprob`, `rank`
    and `decoded_token`; None for a prompt's first. By the token's text where the engine names no
    ids.
    """
    if tokens is None:
        return None
    positions: list[dict[int | str, Any] | None] = []
    for token in tokens:
        if token.logprob is None:
            positions.append(None)
            continue
        ids: Sequence[int | str] = token.top_ids or [text for text, _ in token.top]
        id_ = token.token if token.id is None else token.id
        rank = token.rank
        if rank is None and id_ in ids:  # not every engine says it
            rank = ids.index(id_) + 1
        own = {"logprob": token.logprob, "rank": rank, "decoded_token": token.token}
        found: dict[int | str, Any] = {id_: own}
        for rank, (id, (text, logprob)) in enumerate(zip(ids, token.top, strict=True), 1):
            found.setdefault(id, {"logprob": logprob, "rank": rank, "decoded_token": text})
        positions.append(found)
    return positions
