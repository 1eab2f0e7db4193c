"""Parameters that only some engines understand, in vLLM's names. Their values travel as
`Sampling.extra`, and an engine without one refuses it by name.

Source: vLLM 0.32, `vllm/entrypoints/openai/*/protocol.py`. `diversity_penalty`, `early_stopping`
and `num_beam_groups` are of transformers' `GenerationConfig`.
"""

from __future__ import annotations

from operator import attrgetter
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from penstock.types import FRACTIONS, SAME_NAME, Sampling

_NOTHING: tuple[Any, ...] = (None, {}, [])
_Whole = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]


class EngineParameters(Struct, kw_only=True):
    """The parameters, with vLLM's defaults. A default says the same as no value."""

    skip_special_tokens: bool | None = True
    spaces_between_special_tokens: bool | None = True
    include_stop_str_in_output: bool | None = False
    truncate_prompt_tokens: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
    truncation_side: Literal["left", "right"] | None = None
    cache_salt: Annotated[str, Meta(min_length=1, max_length=1024)] | None = None
    return_tokens_as_token_ids: bool | None = False
    return_token_ids: bool | None = False
    logprob_token_ids: list[Annotated[int, Meta(ge=0, le=2**31 - 1)]] | None = None
    thinking_token_budget: _Whole | None = None
    repetition_detection: dict[str, Any] | None = None
    watermarking: bool | None = None
    documents: list[dict[str, str]] | None = None
    mm_processor_kwargs: dict[str, Any] | None = None
    media_io_kwargs: dict[str, dict[str, Any]] | None = None
    vllm_xargs: dict[str, str | int | float | list[str | int | float]] | None = None
    kv_transfer_params: dict[str, Any] | None = None
    ec_transfer_params: dict[str, Any] | None = None
    include_reasoning: bool | None = True
    use_beam_search: bool | None = False
    length_penalty: float | None = 1.0
    early_stopping: bool | Literal["never"] | None = False
    num_beam_groups: Annotated[int, Meta(ge=1, le=128)] | None = 1
    diversity_penalty: float | None = 0.0
    routed_experts_prompt_start: _Whole | None = 0
    return_prompt_text: bool | None = False

    @property
    def extra(self) -> dict[str, Any]:
        """The parameters that were given another value than their default, by name."""
        values = _values(self)
        if values == _DEFAULT_VALUES:  # nearly always
            return {}
        return {
            name: value
            for (name, default), value in zip(DEFAULTS.items(), values, strict=True)
            if value != default and value not in _NOTHING
        }


DEFAULTS = msgspec.structs.asdict(EngineParameters())
"""The parameters' names and default values."""
_DEFAULT_VALUES = tuple(DEFAULTS.values())
_values = attrgetter(*DEFAULTS)
MODEL_DEFAULTS = (*FRACTIONS, "top_k")
"""The sampling parameters for which a model's files may state defaults."""
_defaulted = attrgetter(*MODEL_DEFAULTS)


def stated(body: object) -> dict[str, Any]:
    """The values of a body for the fields of `Sampling` in `SAME_NAME`. None states nothing."""
    return {name: value for name in SAME_NAME if (value := getattr(body, name, None)) is not None}


def unset(given: object) -> tuple[str, ...]:
    """The names in `MODEL_DEFAULTS` that a body leaves open, for `Sampling.unset`."""
    values = zip(MODEL_DEFAULTS, _defaulted(given), strict=True)
    return tuple([name for name, value in values if value is None])


def with_model_defaults(sampling: Sampling, defaults: dict[str, Any]) -> Sampling:
    """The sampling, with the model's `defaults` for what the request leaves open."""
    taken = {name: defaults[name] for name in sampling.unset if name in defaults}
    return msgspec.structs.replace(sampling, **taken, unset=()) if taken else sampling
