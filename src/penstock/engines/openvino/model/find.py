"""Resolves a `model_source`: demo model, IR directory, GGUF file, or a model to convert."""

from __future__ import annotations

from pathlib import Path

from msgspec import Struct

from penstock.demo import MODEL_NAME, model_path
from penstock.engines.openvino.model.convert import convert
from penstock.engines.openvino.model.files import (
    context_length_of,
    gguf_context_length,
    is_ir,
    read_config,
    task_of,
)
from penstock.errors import EngineStartError


class ModelFiles(Struct, frozen=True):
    """A model ready to load: its IR directory or GGUF file, its task, and its context length in
    tokens.
    """

    path: Path
    task: str
    context_length: int


def check_tokenizer(source: str, task: str) -> None:
    """Raise `EngineStartError` unless the directory `source` holds a tokenizer, and the task can
    use it.
    """
    if task != "generate":
        raise EngineStartError(
            "only models that generate text take another tokenizer than their own"
        )
    if not (Path(source).expanduser() / "openvino_tokenizer.xml").is_file():
        raise EngineStartError(
            f"the tokenizer '{source}' is no directory with an openvino_tokenizer.xml"
        )


def stated_context_length(source: str) -> int | None:
    """The context length in tokens that the model's local files state; None if they do not."""
    path = model_path("openvino") if source == MODEL_NAME else Path(source).expanduser()
    try:
        if path.suffix == ".gguf":
            return gguf_context_length(path)
        config = read_config(path)
    except (OSError, EngineStartError):
        return None
    return context_length_of(config) if config else None


def find_model(source: str, task: str | None, max_model_len: int | None) -> ModelFiles:
    """Resolve `source`. Converts a Hugging Face model on first use, and shows its progress.

    Raises `EngineStartError` if there is no such model, `MissingExtraError` if a conversion needs
    an extra that is not installed.
    """
    path = model_path("openvino") if source == MODEL_NAME else Path(source).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise EngineStartError(f"there is no GGUF file '{path}'")
        return ModelFiles(path, task or "generate", max_model_len or gguf_context_length(path))
    if not is_ir(path):
        path = convert(source, task)
    config = read_config(path)
    return ModelFiles(
        path, task or task_of(path, config), max_model_len or context_length_of(config)
    )
