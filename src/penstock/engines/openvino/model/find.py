"""Finds what a `model_source` names: the shipped demo model, an IR directory, a GGUF file, or
something to convert.
"""

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
    """A model ready to load: an IR directory or a GGUF file, what it does, and its context in
    tokens.
    """

    path: Path
    task: str
    context_length: int


def check_tokenizer(source: str, task: str) -> None:
    """Raise `EngineStartError` unless the directory `source` holds a tokenizer that this kind of
    model can take.
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
    """The model's context in tokens by what its files state; None if it must be fetched or read
    otherwise first.
    """
    path = model_path("openvino") if source == MODEL_NAME else Path(source).expanduser()
    try:
        if path.suffix == ".gguf":
            return gguf_context_length(path)
        config = read_config(path)
    except (OSError, EngineStartError):
        return None
    return context_length_of(config) if config else None


def find_model(source: str, task: str | None, max_model_len: int | None) -> ModelFiles:
    """Resolve `source`. Converts a Hugging Face model on first use, which takes a while and shows
    its progress.

    Raises `EngineStartError` if there is no such model, `MissingExtraError` if it must be converted
    and cannot.
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
