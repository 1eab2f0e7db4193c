from __future__ import annotations

import msgspec


class SamplingParams(msgspec.Struct, kw_only=True):
    max_new_tokens: int | None = 128
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    min_new_tokens: int = 0
    json_schema: str | None = None
    regex: str | None = None
    ignore_eos: bool = False
    no_stop_trim: bool = False
    sampling_seed: int | None = None
