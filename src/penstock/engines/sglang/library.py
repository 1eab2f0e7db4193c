"""Everything that is taken from SGLang. Importing this takes seconds and needs what SGLang needs,
such as a GPU.
"""

from __future__ import annotations

from penstock.engines.sglang.options import version_note
from penstock.errors import EngineStartError

try:
    from sglang.srt.entrypoints.engine import Engine
    from sglang.srt.managers.io_struct import (
        ContinueGenerationReqInput,
        PauseGenerationReqInput,
        ReleaseMemoryOccupationReqInput,
        ResumeMemoryOccupationReqInput,
    )
except ImportError as error:
    raise EngineStartError(
        f"the installed SGLang cannot be used: {error}{version_note()}"
    ) from error

__all__ = [
    "ContinueGenerationReqInput",
    "Engine",
    "PauseGenerationReqInput",
    "ReleaseMemoryOccupationReqInput",
    "ResumeMemoryOccupationReqInput",
]
