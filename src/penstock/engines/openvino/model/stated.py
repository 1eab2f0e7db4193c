"""What is known of a model from its files, before it is loaded."""

from __future__ import annotations

from penstock.demo import MODEL_NAME, model_path
from penstock.engines.base import Stated
from penstock.engines.disk.sources import description
from penstock.engines.openvino.model.files import (
    MAX_TOP_LOGPROBS,
    TASKS_OF,
    context_length_of,
    inputs_of,
    longest_text,
    read_config,
    task_of,
)
from penstock.engines.openvino.model.gguf import gguf_context_length, gguf_vocabulary
from penstock.engines.openvino.model.source import path_of
from penstock.errors import EngineStartError


def stated_context_length(source: str) -> int | None:
    """The context length in tokens that the model's local files state; None if they do not."""
    path = path_of(source)
    try:
        if path.suffix == ".gguf":
            return gguf_context_length(path)
        config = read_config(path)
        longest = longest_text(path) if task_of(path, config) == "embed" else None
    except (OSError, EngineStartError):
        return None
    if not config:
        return None
    return min(context_length_of(config), longest or context_length_of(config))


def stated(source: str, task: str | None) -> Stated:
    """What the model's files state, as far as they are here. `task` is what the options say."""
    path = model_path("openvino") if source == MODEL_NAME else description(source)
    vocabulary, inputs = None, tuple[str, ...]()
    try:
        if path.suffix == ".gguf":
            inputs = ("text",)
            vocabulary, task = gguf_vocabulary(path), task or "generate"
        elif config := read_config(path):
            task = task or task_of(path, config)
            inputs = inputs_of(path, config, task)
            if "://" in source and "image" not in inputs:
                inputs = ()  # a bucket may have a converted model, whose config.json says less
            vocabulary = config.get("text_config", config).get("vocab_size")
    except (OSError, AttributeError, EngineStartError):
        pass
    return Stated(
        vocabulary if isinstance(vocabulary, int) and vocabulary > 0 else None,
        None if task is None else TASKS_OF.get(task),
        MAX_TOP_LOGPROBS if task == "generate" else None,
        inputs if task in ("generate", "embed") else (),
    )


def stated_inputs(source: str, task: str | None = None) -> tuple[str, ...]:
    """What the local model reads, such as "text" and "image"; empty if that is not known."""
    path = path_of(source)
    if path.suffix == ".gguf":
        return ("text",)
    try:
        config = read_config(path)
    except (OSError, EngineStartError):
        return ()
    return inputs_of(path, config, task or task_of(path, config)) if config else ()
