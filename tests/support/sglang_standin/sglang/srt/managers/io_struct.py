from __future__ import annotations

from typing import Literal

import msgspec


class ContinueGenerationReqInput(msgspec.Struct, kw_only=True):
    torch_empty_cache: bool = True


class PauseGenerationReqInput(msgspec.Struct, kw_only=True):
    mode: Literal["abort", "retract", "in_place"] = "abort"


class ReleaseMemoryOccupationReqInput(msgspec.Struct, kw_only=True):
    tags: list[str] | None = None


class ResumeMemoryOccupationReqInput(msgspec.Struct, kw_only=True):
    tags: list[str] | None = None


class FlushCacheReqOutput(msgspec.Struct, kw_only=True):
    success: bool
    message: str = ""


class LoRAUpdateOutput(msgspec.Struct, kw_only=True):
    success: bool
    error_message: str | None = None
