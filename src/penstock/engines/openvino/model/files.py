"""Reads a model's files for its task, context length and pooling."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from penstock.errors import EngineStartError, RequestError
from penstock.parsing import json_fault

FALLBACK_CONTEXT = 4096
_LONG_ROPE = ("longrope", "su")
SENTENCE_TRANSFORMERS = "modules.json"
MODEL_KINDS = {
    "generate": "a language model",
    "embed": "an embedding model",
    "score": "a rerank model",
    "transcribe": "a speech-to-text model",
    "speak": "a text-to-speech model",
}
"""The tasks, with the name that messages give to a model of each."""
MAX_TOP_LOGPROBS = 20
TASKS_OF = {
    "generate": frozenset({"chat", "completions", "decide", "tokenize", "detokenize"}),
    "embed": frozenset({"embeddings", "tokenize", "detokenize"}),
    "score": frozenset({"score", "rerank", "tokenize", "detokenize"}),
    "transcribe": frozenset({"transcriptions", "tokenize", "detokenize"}),
    "speak": frozenset({"speech", "tokenize", "detokenize"}),
}
"""By task of a model, the methods of the engine protocol that it serves."""


def is_ir(path: Path) -> bool:
    """Whether `path` is a directory with a converted model."""
    # Not path.is_dir(), which raises OSError for a name that is too long.
    return os.path.isdir(path) and any(path.glob("openvino_*model*.xml"))


def named_templates(folder: Path) -> dict[str, str]:
    """The chat templates of a tokenizer's directory, beside the default one, by name."""
    files = folder.glob("additional_chat_templates/*.jinja")
    return {file.stem: file.read_text(encoding="utf-8") for file in sorted(files)}


def onnx_file(path: Path) -> Path | None:
    """The model in ONNX form in a directory, where optimum, sentence-transformers or fastembed put
    it; the one with the most precise weights.
    """
    names = ("model.onnx", "onnx/model.onnx", "model_optimized.onnx", "model_quantized.onnx")
    files = (path / name for name in (*names, "onnx/model_quantized.onnx"))
    return next((file for file in files if file.is_file()), None)


LANGUAGE_MODEL = "openvino_language_model.xml"
TEXT_EMBEDDINGS = "openvino_text_embeddings_model.xml"
_VISION = (
    *("openvino_vision_embeddings_model.xml", TEXT_EMBEDDINGS),
    *("config.json", "preprocessor_config.json"),
)


def sees(path: Path) -> bool:
    """Whether `path` is a directory with a converted vision-language model. Raises
    `EngineStartError` for one that lacks a file: without its `preprocessor_config.json`, for
    instance, images would silently be scaled wrongly.
    """
    if not (path / LANGUAGE_MODEL).is_file():
        return False
    missing = [name for name in _VISION if not (path / name).is_file()]
    if missing:
        raise EngineStartError(
            f"'{path}' is a vision-language model without {' and '.join(missing)}; convert it"
            " again, or copy what is missing from the model that it was made of"
        )
    return True


_VIDEO_MODELS = frozenset({"llava_next_video", "qwen2_vl", "qwen2_5_vl", "qwen3_vl"})
"""Types of models with which OpenVINO GenAI sees videos as they were trained to."""


def inputs_of(path: Path, config: dict[str, Any], task: str) -> tuple[str, ...]:
    """What messages to a model may hold. Who embeds images embeds no videos."""
    if not is_vision_config(config) and not (path / LANGUAGE_MODEL).is_file():
        return ("text",)
    watches = task == "generate" and config.get("model_type") in _VIDEO_MODELS
    return ("text", "image", *(("video",) if watches else ()))


def is_vision_config(config: dict[str, Any]) -> bool:
    """Whether a `config.json` is that of a vision-language model."""
    return "vision_config" in config


def embeds_images(config: dict[str, Any]) -> bool:
    """Whether OpenVINO GenAI may make vectors of images with such a model."""
    return config.get("model_type") == "qwen3_vl"


_FORMS: dict[str, type] = {"architectures": list, "text_config": dict}
"""What some fields of a `config.json` hold; one that is damaged states nothing."""


def read_config(path: Path, name: str = "config.json") -> dict[str, Any]:
    """The object in a file of the model's, its `config.json`; an empty dict if there is none."""
    config = _read_json(path / name)
    if not isinstance(config, dict):
        return {}
    return {
        field: value
        for field, value in config.items()
        if field not in _FORMS or isinstance(value, _FORMS[field])
    }


def task_of(path: Path, config: dict[str, Any]) -> str:
    """The task of the model in `path`, by its architecture and sentence-transformers' file."""
    name = str((config.get("architectures") or [""])[0])
    if name.endswith("ForSequenceClassification"):
        return "score"
    if name.startswith("Whisper"):
        return "transcribe"
    if name.startswith("SpeechT5ForTextToSpeech"):
        return "speak"
    # Some embedding models have the architecture of a language model.
    if (path / SENTENCE_TRANSFORMERS).is_file():
        return "embed"
    if name.endswith(("ForCausalLM", "ForConditionalGeneration", "LMHeadModel")) or not name:
        return "generate"
    return "embed"


def check_whole(path: Path, task: str, tokenizer: str | None) -> None:
    """Raise `EngineStartError` for a directory in OpenVINO's form that lacks a file. `tokenizer` is
    the directory of another one, if there is one.
    """
    needed = {file.with_suffix(".bin") for file in path.glob("openvino_*.xml")}
    if tokenizer is None:
        needed.add(path / "openvino_tokenizer.xml")
        if task == "generate":
            needed.add(path / "openvino_detokenizer.xml")
    if missing := sorted(file.name for file in needed if not file.is_file()):
        raise EngineStartError(
            f"'{path}' lacks {' and '.join(missing)}: convert the model again, or copy what is"
            " missing from where it was converted"
        )


def check_kind(source: str, task: str, config: dict[str, Any]) -> None:
    """Refuse models that the exporter supports and the engine does not."""
    architecture = str((config.get("architectures") or [""])[0])
    kind = ""
    if task == "generate" and config.get("is_encoder_decoder"):
        kind = "encoder-decoder"
    elif task == "score" and architecture.endswith("ForCausalLM"):
        kind = "generative rerank"
    elif task == "embed" and is_vision_config(config) and not embeds_images(config):
        kind = "image embedding"
    elif task == "embed" and config.get("model_type") in _ENCODERS_OF_TWO:
        kind = "encoder-decoder"  # the exporter adds a decoder, of random numbers
    elif _rope(config)[0] == "dynamic":
        kind = "dynamically scaled (rope)"  # the exporter makes one fixed factor of it
    if kind:
        raise EngineStartError(
            f"'{source}': the openvino engine has no support for {kind} models ({architecture})"
        )
    if task == "score":
        check_labels(source, config)


_ENCODERS_OF_TWO = frozenset({"t5", "mt5", "umt5"})


def _rope(config: dict[str, Any]) -> tuple[str, int]:
    """How a model scales its rotary positions, and the positions that it was made for before; ""
    and 0 if it does not say.
    """
    part = config.get("text_config") or config
    stated = part.get("rope_parameters") or part.get("rope_scaling")
    if not isinstance(stated, dict):
        return "", 0
    name = "original_max_position_embeddings"
    original = stated.get(name) or part.get(name)
    kind = str(stated.get("rope_type") or stated.get("type") or "")
    return kind, original if isinstance(original, int) else 0


def check_positions(source: str, config: dict[str, Any], max_model_len: int | None) -> None:
    """Refuse a context in which texts would change each other's answers: a model with LongRoPE has
    other factors for a long text, and its graph takes those for all texts of a step.
    """
    kind, original = _rope(config)
    if kind in _LONG_ROPE and 0 < original < (max_model_len or 0):
        raise EngineStartError(
            f"max_model_len {max_model_len}: '{source}' has other factors of positions beyond"
            f" {original} tokens ({kind}), which would change the answers to texts beside a longer"
            f" one; give at most {original}"
        )


def check_labels(source: str, config: dict[str, Any]) -> None:
    """Refuse a model that sorts texts into classes: no label of it is a score."""
    labels = config.get("id2label")
    if isinstance(labels, dict) and len(labels) > 2:
        shown = ", ".join(map(str, list(labels.values())[:5]))
        raise EngineStartError(
            f"'{source}' has {len(labels)} labels ({shown}), where a rerank model has one: the"
            " openvino engine has no support for classification models"
        )


def lacks_token_types(path: Path) -> bool:
    """Whether the converted model needs token types (which text of a pair a token belongs to) and
    its tokenizer does not emit them.
    """
    name = '"token_type_ids"'
    model, tokenizer = path / "openvino_model.xml", path / "openvino_tokenizer.xml"
    return name in _text(model) and name not in _text(tokenizer)


def _text(path: Path) -> str:
    return path.read_text(errors="replace") if path.is_file() else ""


def context_length_of(config: dict[str, Any]) -> int:
    """The model's context length in tokens, by its `config.json`, or the usual one."""
    stated = positions_of(config) or FALLBACK_CONTEXT
    kind, original = _rope(config)
    return min(stated, original) if kind in _LONG_ROPE and original else stated


def positions_of(config: dict[str, Any]) -> int | None:
    """The positions for tokens that a model's `config.json` states; None if it states none."""
    for part in (config, config.get("text_config") or {}):
        for name in (
            "max_position_embeddings",
            "n_positions",
            "max_sequence_length",
            "max_target_positions",
            "max_text_positions",
        ):
            if isinstance(found := part.get(name), int) and found > 0:
                return found - _unused_positions(part)
    return None


def has_window(config: dict[str, Any]) -> bool:
    """Whether a token sees just the last ones before it, and the context is longer than these."""
    part = config.get("text_config") or config
    window = part.get("sliding_window")
    return (
        isinstance(window, int)
        and 0 < window < context_length_of(config)
        and part.get("use_sliding_window") is not False
    )


_COUNT_FROM_PADDING = frozenset(
    {
        *("roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet"),
        *("data2vec-text", "esm", "ibert", "longformer", "luke", "xmod"),
    }
)
"""Types of models that count positions from the padding token's id on, in transformers."""
_PADDING = 1
"""The id of their padding token, where none is stated."""


def _unused_positions(config: dict[str, Any]) -> int:
    """The number of positions that no token uses. A text that is longer by as many would read
    behind the end of the table.
    """
    if config.get("model_type") not in _COUNT_FROM_PADDING:
        return 0
    padding = config.get("pad_token_id")
    return (padding if isinstance(padding, int) else _PADDING) + 1


PROMPTS_CONFIG = "config_sentence_transformers.json"
LENGTH_CONFIG = "sentence_bert_config.json"


def instructions_of(
    path: Path, query: str | None, document: str | None, pooling: str
) -> dict[str | None, str]:
    """The text to put before each text by its `input_type`, as the options say (`query`,
    `document`) or the file of sentence-transformers; under None that of texts without a type.
    A type is absent where nothing is stated for any: the model may or may not want one.

    Raises `EngineStartError` where the model's mean leaves instructions out, unless both options
    are "": then no text has one.
    """
    stated = read_config(path, PROMPTS_CONFIG)
    prompts = {
        name: text
        for name, text in (stated.get("prompts") or {}).items()
        if isinstance(name, str) and isinstance(text, str)
    }
    found: dict[str | None, str] = {None: prompts.get(stated.get("default_prompt_name") or "", "")}
    known = prompts.keys() & {"query", "document", "passage", "corpus"}
    named = {
        "query": (query, ("query",)),
        "document": (document, ("document", "passage", "corpus")),
    }
    if known or query is not None or document is not None:
        for name, (given, names) in named.items():
            own = next((prompts[one] for one in names if one in prompts), "")
            found[name] = own if given is None else given
    left_out = pooling == "mean" and _pooling(path).get("include_prompt") is False
    if left_out and query == document == "":
        found[None] = ""
    if left_out and any(found.values()):
        raise EngineStartError(
            "the model leaves its instructions out of the mean (include_prompt), which the openvino"
            ' engine does not; set query_instruction and document_instruction to "" to go without'
        )
    return found


def instruction_for(instructions: Mapping[str | None, str], input_type: str | None) -> str:
    """The instruction for an input of this type. Raises `RequestError` where none is stated."""
    if input_type not in instructions:
        raise RequestError(
            f"this model states no instruction for the input_type '{input_type}': set"
            f' {input_type}_instruction in engine_kwargs ("" for none)',
            param="input_type",
        )
    return instructions[input_type]


def longest_text(path: Path) -> int | None:
    """The most tokens of a text that an embedding model was made for, by the file of
    sentence-transformers; None without it.
    """
    length = read_config(path, LENGTH_CONFIG).get("max_seq_length")
    return length if isinstance(length, int) and length > 0 else None


def lowers_texts(path: Path) -> bool:
    """Whether an embedding model was made for lower-case texts, whatever its tokenizer does, by the
    file of sentence-transformers.
    """
    return read_config(path, LENGTH_CONFIG).get("do_lower_case") is True


POOLING_CONFIG = "1_Pooling/config.json"
_POOLING_MODES: dict[str, Literal["mean", "cls", "last_token"]] = {
    **{"pooling_mode_cls_token": "cls", "cls": "cls"},
    **{"pooling_mode_lasttoken": "last_token", "lasttoken": "last_token"},
    **{"pooling_mode_mean_tokens": "mean", "mean": "mean"},
}
"""Older files say of each mode whether it is used, newer ones which is."""


def _pooling(path: Path) -> dict[str, Any]:
    """What sentence-transformers states of the pooling; nothing without its file."""
    listed = (folder for name, folder in modules_of(path) if name == "Pooling")
    return read_config(next(listed, path / "1_Pooling"))


Pooling = Literal["mean", "cls", "last_token"]


def pooling_of(path: Path, otherwise: Pooling = "mean") -> Pooling:
    """The pooling of an embedding model, from the file of sentence-transformers; `otherwise`
    without that file.

    Raises `EngineStartError` for an unknown pooling: the wrong one would silently give poor
    vectors.
    """
    modes = _pooling(path)
    if not modes:
        return otherwise
    given = modes.get("pooling_mode") or [
        name for name, value in modes.items() if name.startswith("pooling_mode_") and value is True
    ]
    chosen = [given] if isinstance(given, str) else given
    if len(chosen) != 1 or chosen[0] not in _POOLING_MODES:
        ways = ", ".join(chosen) or "none"
        raise EngineStartError(
            f"the model pools by {ways}; set embedding_pooling to mean, cls or last_token"
        )
    return _POOLING_MODES[chosen[0]]


def modules_of(path: Path) -> list[tuple[str, Path]]:
    """The parts that sentence-transformers lists of a model: each one's class and its folder."""
    listed = _read_json(path / SENTENCE_TRANSFORMERS)
    return [
        (str(one.get("type")).rpartition(".")[2], path / str(one.get("path")))
        for one in (listed if isinstance(listed, list) else [])
        if isinstance(one, dict)
    ]


def module_folders(path: Path) -> list[Path]:
    """The folders of those parts of a model that have one of their own."""
    return sorted({folder for _, folder in modules_of(path) if folder.parent == path})


def module_files(path: Path) -> list[Path]:
    """The files in `module_folders`."""
    return [
        file
        for folder in module_folders(path)
        for file in folder.glob("*")
        if file.suffix in (".json", ".safetensors")
    ]


def is_splade(path: Path) -> bool:
    """Whether sentence-transformers says that the model gives sparse vectors by its
    masked-language-model head.
    """
    return any(name == "SpladePooling" for name, _ in modules_of(path))


def _read_json(file: Path) -> Any:
    """The content of a JSON file; None without the file."""
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        return None
    try:
        return json.loads(content)  # accepts the infinities that Hugging Face writes
    except (ValueError, RecursionError):
        raise EngineStartError(f"'{file}' is not valid JSON: {json_fault(content)}") from None
