"""Sampling parameters in vLLM's form."""

from __future__ import annotations

from typing import Any

from penstock.engines.vllm.library import RequestOutputKind, SamplingParams, StructuredOutputsParams
from penstock.types import Sampling, StructuredOutput


def sampling_params(
    sampling: Sampling,
    *,
    n: int,
    max_tokens: int,
    stream: bool,
    kv_transfer_params: dict[str, Any] | None = None,
) -> Any:
    """vLLM's `SamplingParams`. Raises `ValueError` for values that vLLM refuses."""
    return SamplingParams(
        n=n,
        max_tokens=max_tokens,
        min_tokens=sampling.min_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        min_p=sampling.min_p,
        seed=sampling.seed,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        repetition_penalty=sampling.repetition_penalty,
        stop=list(sampling.stop) or None,
        stop_token_ids=list(sampling.stop_token_ids) or None,
        ignore_eos=sampling.ignore_eos,
        logprobs=sampling.logprobs,
        structured_outputs=_constraint(sampling.structured),
        output_kind=RequestOutputKind.DELTA if stream else RequestOutputKind.FINAL_ONLY,
        extra_args={"kv_transfer_params": kv_transfer_params} if kv_transfer_params else None,
        skip_clone=True,  # the object serves one request only
    )


def _constraint(structured: StructuredOutput | None) -> Any:
    if structured is None:
        return None
    if structured.kind == "json_schema":
        return StructuredOutputsParams(json=structured.spec)
    if structured.kind == "regex":
        return StructuredOutputsParams(regex=structured.spec)
    if structured.kind == "grammar":
        return StructuredOutputsParams(grammar=structured.spec)
    return StructuredOutputsParams(json_object=True)
