"""Checks a LoRA adapter's files before an engine sees them."""

from __future__ import annotations

import json
from pathlib import Path

from penstock.errors import ModelNotFoundError
from penstock.parsing.json_errors import json_fault

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"


def adapter_rank(name: str, path: str) -> int:
    """The rank of the adapter in the PEFT directory `path`.

    Raises `ModelNotFoundError` naming what is missing or wrong.
    """
    directory = Path(path)
    if not directory.is_dir():
        raise ModelNotFoundError(f"adapter '{name}': there is no directory '{path}'", param="model")
    for file in (CONFIG, WEIGHTS):
        if not (directory / file).is_file():
            raise ModelNotFoundError(f"adapter '{name}': '{path}' has no {file}", param="model")
    content = (directory / CONFIG).read_bytes()
    try:
        settings = json.loads(content)
    except (ValueError, RecursionError):
        why = f"{CONFIG} is not valid JSON: {json_fault(content)}"
        raise ModelNotFoundError(f"adapter '{name}': {why}", param="model") from None
    rank = settings.get("r") if isinstance(settings, dict) else None
    if not isinstance(rank, int) or rank < 1 or settings.get("peft_type", "LORA") != "LORA":
        raise ModelNotFoundError(f"adapter '{name}': {CONFIG} does not describe a LoRA adapter", param="model")
    return rank
