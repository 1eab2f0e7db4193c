"""Files that an engine's library loads itself: where models and LoRA adapters are."""

from __future__ import annotations

import json
import os
from pathlib import Path

from penstock import demo
from penstock.engines.base import LLMEngine
from penstock.errors import EngineStartError, ModelNotFoundError
from penstock.parsing import json_fault


def model_for(source: str) -> str:
    """The directory or hub id of a `model_source`. Raises `EngineStartError`."""
    if source == demo.MODEL_NAME:
        return str(demo.model_path("huggingface"))
    path = Path(source).expanduser()
    if path.exists():
        return str(path)
    if source.startswith(("/", ".", "~")):
        raise EngineStartError(f"there is no model directory '{source}'")
    return source


def stated_context_length(source: str) -> int | None:
    """The context in tokens that the files of a local model state; None if they do not."""
    path = (
        demo.model_path("huggingface") if source == demo.MODEL_NAME else Path(source).expanduser()
    )
    try:
        config = json.loads((path / "config.json").read_bytes())
        length = config.get("text_config", config).get("max_position_embeddings")
    except (OSError, ValueError, AttributeError, RecursionError):
        return None
    return length if isinstance(length, int) else None


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
        raise ModelNotFoundError(
            f"adapter '{name}': {CONFIG} is not valid JSON: {json_fault(content)}", param="model"
        ) from None
    rank = settings.get("r") if isinstance(settings, dict) else None
    if not isinstance(rank, int) or rank < 1 or settings.get("peft_type", "LORA") != "LORA":
        raise ModelNotFoundError(
            f"adapter '{name}': {CONFIG} does not describe a LoRA adapter", param="model"
        )
    return rank


def adapter_path(engine: LLMEngine, name: str, where: str | None = None) -> str | None:
    """The directory of an adapter, or None if the engine knows it already.

    `where` is looked at first. Raises `ModelNotFoundError`.
    """
    if name in engine.adapters:
        return None
    if where is not None and os.path.isdir(where):
        return where
    if engine.model_source == demo.MODEL_NAME:
        try:
            return str(demo.adapter_path(name))
        except ValueError as error:
            if not os.path.isdir(name):
                raise ModelNotFoundError(str(error), param="adapter") from None
    if os.path.isdir(name):
        return name
    raise ModelNotFoundError(
        f"no adapter '{name}': it is no directory, and the engine has none of that name"
    )
