"""Models in Hugging Face's form, as engines that load it themselves are given them."""

from __future__ import annotations

import json
from pathlib import Path

from penstock import demo
from penstock.errors import EngineStartError


def model_for(source: str) -> str:
    """The directory or hub id of a `model_source`. Raises `EngineStartError` for a directory that
    is not there.
    """
    if source == demo.MODEL_NAME:
        return str(demo.model_path("huggingface"))
    path = Path(source).expanduser()
    if path.exists():
        return str(path)
    if source.startswith(("/", ".", "~")):
        raise EngineStartError(f"there is no model directory '{source}'")
    return source


def stated_context_length(source: str) -> int | None:
    """The context in tokens that the files of a local model state; None where there are none, or do
    not say it.
    """
    path = (
        demo.model_path("huggingface") if source == demo.MODEL_NAME else Path(source).expanduser()
    )
    try:
        config = json.loads((path / "config.json").read_bytes())
        length = config.get("text_config", config).get("max_position_embeddings")
    except (OSError, ValueError, AttributeError, RecursionError):
        return None
    return length if isinstance(length, int) else None
