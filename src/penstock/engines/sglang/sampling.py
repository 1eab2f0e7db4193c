"""Sampling parameters in SGLang's form."""

from __future__ import annotations

from typing import Any

from penstock.types import Sampling, StructuredOutput

ANY_OBJECT = '{"type": "object"}'


def sampling_params(sampling: Sampling, max_tokens: int) -> dict[str, Any]:
    """What `Engine.async_generate` takes as `sampling_params`. Stop strings stay in the text: they
    are cut here.
    """
    params: dict[str, Any] = {
        "max_new_tokens": max_tokens,
        "min_new_tokens": sampling.min_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k if sampling.top_k > 0 else -1,
        "min_p": sampling.min_p,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "repetition_penalty": sampling.repetition_penalty,
        "ignore_eos": sampling.ignore_eos,
        "no_stop_trim": True,
    }
    if sampling.stop:
        params["stop"] = list(sampling.stop)
    if sampling.stop_token_ids:
        params["stop_token_ids"] = list(sampling.stop_token_ids)
    if sampling.seed is not None:
        params["sampling_seed"] = sampling.seed
    if sampling.structured is not None:
        params |= _constraint(sampling.structured)
    return params


def _constraint(structured: StructuredOutput) -> dict[str, Any]:
    if structured.kind == "regex":
        return {"regex": structured.spec}
    return {"json_schema": structured.spec if structured.kind == "json_schema" else ANY_OBJECT}
