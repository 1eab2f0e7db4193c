"""`engine_kwargs` of the OpenVINO engine. Where vLLM has the same knob, it has vLLM's name."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, field

from penstock.errors import ConfigError

GIB = 1 << 30
Positive = Annotated[int, Meta(ge=1)]


class OpenVINOOptions(Struct, frozen=True, forbid_unknown_fields=True):
    """Options of the embedded engine.

    `task` None: what the model's files say. `tokenizer`: a directory with another tokenizer than the model's own, in
    OpenVINO's form, for models that generate. `max_num_seqs`: requests decoded together. `max_num_batched_tokens`:
    tokens a step may work on; small keeps the steps short, so a long prompt does not stall the others. `max_model_len`
    None: the model's own context. `kv_cache_memory_bytes`: memory of the KV cache, used as it fills; a size that is
    not a whole number of GiB costs a second load at the start. `num_threads` 0: all cores. `inference_precision` None:
    the device's choice, f32 where only one CPU is visible (bf16 crashes there on AMX machines). `max_loras`: adapters
    held at once, each with a copy of the model's weights; the least recently used leaves. `embedding_pooling` None:
    what the model's `1_Pooling/config.json` says, else the mean. `prompt_lookup`: speculate with n-grams of
    the prompt, of `prompt_lookup_max` tokens at most. `draft_model`: directory of a smaller model that speculates.
    `num_speculative_tokens`: how far either looks ahead. `properties`: further OpenVINO properties.
    """

    task: Literal["generate", "embed", "score", "transcribe"] | None = None
    device: str = "CPU"
    tokenizer: str | None = None
    max_num_seqs: Positive = 128
    max_num_batched_tokens: Annotated[int, Meta(ge=32)] = 512
    max_model_len: Positive | None = None
    kv_cache_memory_bytes: Annotated[int, Meta(ge=1 << 20)] = GIB
    kv_cache_precision: Literal["f32", "f16", "bf16", "u8", "u4"] | None = None
    enable_prefix_caching: bool = True
    num_threads: Annotated[int, Meta(ge=0)] = 0
    inference_precision: Literal["f32", "f16", "bf16"] | None = None
    max_loras: Positive = 4
    prompt_lookup: bool = False
    prompt_lookup_max: Positive = 3
    draft_model: str | None = None
    num_speculative_tokens: Positive = 5
    embedding_pooling: Literal["mean", "cls", "last_token"] | None = None
    embedding_normalize: bool = True
    properties: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.prompt_lookup and self.draft_model:
            raise ConfigError("give prompt_lookup or draft_model, not both", field="engine_kwargs.draft_model")
