"""Checks a LoRA adapter's files before an engine sees them."""

from __future__ import annotations

import json
from pathlib import Path

from penstock.errors import ModelNotFoundError

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"


def check_adapter(name: str, path: str) -> int:
    """The rank of the adapter in the PEFT directory `path`.

    Raises `ModelNotFoundError` naming what is missing or wrong.
    """
    directory = Path(path)
    if not directory.is_dir():
        raise ModelNotFoundError(f"adapter '{name}': there is no directory '{path}'", param="model")
    for file in (CONFIG, WEIGHTS):
        if not (directory / file).is_file():
            raise ModelNotFoundError(f"adapter '{name}': '{path}' has no {file}", param="model")
    try:
        settings = json.loads((directory / CONFIG).read_text())
        rank = settings["r"]
    except (ValueError, KeyError, TypeError) as error:
        raise ModelNotFoundError(f"adapter '{name}': {CONFIG} cannot be used: {error!r}", param="model") from None
    if settings.get("peft_type", "LORA") != "LORA" or not isinstance(rank, int) or rank < 1:
        raise ModelNotFoundError(f"adapter '{name}': {CONFIG} does not describe a LoRA adapter", param="model")
    return rank
