"""Resolves a `model_source`: demo model, IR directory, GGUF file, or a model to convert.

Hugging Face models are converted to OpenVINO's format once, and the result is cached. The exporter,
optimum-intel, imports torch. It runs in a process of its own, so that this one never does.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from msgspec import Struct

from penstock import private_files
from penstock.demo import MODEL_NAME, model_path
from penstock.engines.disk.sources import (
    HUB_ID,
    local_source,
    locked,
)
from penstock.engines.openvino.model import tokenizer_trial
from penstock.engines.openvino.model.exporter import check_loaded, converted, run_python
from penstock.engines.openvino.model.files import (
    LENGTH_CONFIG,
    POOLING_CONFIG,
    PROMPTS_CONFIG,
    SENTENCE_TRANSFORMERS,
    check_kind,
    check_labels,
    check_positions,
    context_length_of,
    embeds_images,
    is_ir,
    is_splade,
    is_vision_config,
    lacks_token_types,
    longest_text,
    module_files,
    module_folders,
    onnx_file,
    positions_of,
    read_config,
    sees,
    task_of,
)
from penstock.engines.openvino.model.gguf import check_gguf, gguf_context_length, mends_of
from penstock.engines.openvino.model.weights import (
    Quantization,
    WeightFormat,
    chosen_format,
    megabytes,
    weight_bytes,
    what_is_missing,
)
from penstock.env import cache_dir
from penstock.errors import EngineStartError, MissingExtraError
from penstock.lazy import require
from penstock.observability import is_terminal, say

EXPORT_TASKS = {
    "generate": "text-generation-with-past",
    "embed": "feature-extraction",
    "score": "text-classification",
    "transcribe": "automatic-speech-recognition-with-past",
    "speak": "text-to-audio",
}

_HUB_FILES = ["*.json", "*.txt", "*.model", "*.jinja", "*.safetensors"]
_PLAIN = Quantization()
_BARE = {"architectures": ["BertModel"], "max_position_embeddings": 512}
"""What an ONNX model without a `config.json` is taken for."""
_BESIDE = (SENTENCE_TRANSFORMERS, POOLING_CONFIG, PROMPTS_CONFIG, LENGTH_CONFIG)
"""Files of sentence-transformers that a conversion keeps, as it does those of the parts listed."""
_RECIPE = 5
"""Counts the changes to what a conversion makes. Jobs and caches of answers heed it too."""
_FEWEST_WORDS = 2

# The tokenizer's settings may omit token types although the model needs them.
_ADD_TOKEN_TYPES = """
import sys
from openvino import save_model
from openvino_tokenizers import convert_tokenizer
from transformers import AutoTokenizer
names = ["input_ids", "token_type_ids", "attention_mask"]
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], model_input_names=names)
save_model(convert_tokenizer(tokenizer), sys.argv[1] + "/openvino_tokenizer.xml")
"""


class ModelFiles(Struct, frozen=True):
    """A model ready to load: IR directory or GGUF file, task, and context length in tokens."""

    path: Path
    task: str
    context_length: int


def check_tokenizer(source: str, task: str) -> None:
    """Raise `EngineStartError` unless `source` holds a tokenizer that the task can use."""
    if task != "generate":
        raise EngineStartError(
            "only models that generate text take another tokenizer than their own"
        )
    if not os.path.isfile(Path(source).expanduser() / "openvino_tokenizer.xml"):
        raise EngineStartError(
            f"the tokenizer '{source}' is no directory with an openvino_tokenizer.xml"
        )


def path_of(source: str) -> Path:
    """Where a model is, if it is on this machine. Raises nothing, as some methods of paths do."""
    return model_path("openvino") if source == MODEL_NAME else Path(os.path.expanduser(source))


def recipe_of(source: str) -> int | None:
    """The recipe by which a model is converted, or a GGUF file mended; None if it is neither, or in
    a bucket.
    """
    path = path_of(source)
    if "://" in source or is_ir(path):
        return None
    return mends_of(path) if path.suffix == ".gguf" else _RECIPE


def find_model(
    source: str,
    task: str | None,
    max_model_len: int | None,
    weight_format: WeightFormat | None = None,
    quantization: Quantization = _PLAIN,
) -> ModelFiles:
    """Resolve `source`. Copies a bucket's files, and converts a Hugging Face model, on first use,
    and shows its progress.

    Raises `EngineStartError` if there is no such model, or for a `weight_format` of one that is
    converted already; `MissingExtraError` if a conversion needs an extra that is not installed.
    """
    source = local_source(source)
    path = path_of(source)
    if weight_format is not None and (path.suffix == ".gguf" or is_ir(path)):
        raise EngineStartError(
            f"'{source}' is not converted, so weight_format '{weight_format}' has no meaning for"
            " it: leave it out, or give the model in Hugging Face's form"
        )
    if path.suffix == ".gguf":
        if not os.path.isfile(path):
            raise EngineStartError(f"there is no GGUF file '{path}'")
        check_gguf(path)
        return ModelFiles(path, task or "generate", max_model_len or gguf_context_length(path))
    if not is_ir(path):
        path = convert(source, task, weight_format, quantization)
    config = read_config(path)
    embeds = task == "embed" and embeds_images(config)
    if task not in (None, "generate") and not embeds and sees(path):
        raise EngineStartError(f"'{source}' is a vision-language model, and no model for {task}")
    task = task or task_of(path, config)
    if task == "score":
        check_labels(source, config)
    longest, positions = context_length_of(config), positions_of(config)
    if task != "generate" and positions is not None and (max_model_len or 0) > positions:
        raise EngineStartError(
            f"max_model_len {max_model_len} is more than the {positions} positions of '{source}';"
            f" give at most {positions}"
        )
    if task == "generate":
        check_positions(source, config, max_model_len)
    if task == "embed":
        longest = min(longest, longest_text(path) or longest)
    return ModelFiles(path, task, max_model_len or longest)


def convert(
    source: str,
    task: str | None = None,
    weight_format: WeightFormat | None = None,
    quantization: Quantization = _PLAIN,
) -> Path:
    """Convert a Hugging Face model and return the path of the result. `source` is a directory, or a
    hub id such as "org/name" or "org/name@revision".

    The first call converts the model, shows its progress and its size before and after on stderr,
    and caches the result. Later calls use the cache, even if the extra is gone. A changed directory
    is converted again; a hub id without a revision keeps its first conversion. With `task` None the
    model's files decide.

    Raises `MissingExtraError` without the extra "convert", `EngineStartError` for any other
    failure.
    """
    directory, target, by_onnx = _conversion(source, task, weight_format, quantization)
    if is_ir(target):
        return target
    if (lack := _lack(source, directory, by_onnx)) is not None:
        raise lack
    try:
        private_files.make_folder(target.parent)
        with _progress(source) as stage, locked(target, stage):
            if not is_ir(target):
                if not directory.exists():
                    stage("downloading")
                    directory = _download(source)
                if by_onnx:
                    _read_onnx(source, directory, target, task, stage)
                else:
                    _convert(source, directory, target, task, weight_format, quantization, stage)
    except OSError as error:
        raise EngineStartError(f"'{source}' could not be converted: {error}") from None
    return target


def lack_of(
    source: str,
    task: str | None,
    weight_format: WeightFormat | None,
    quantization: Quantization,
) -> MissingExtraError | None:
    """What `find_model` would raise for a missing extra, if the model is on this machine."""
    path = path_of(source)
    if not os.path.isdir(path) or is_ir(path):
        return None
    try:
        directory, target, by_onnx = _conversion(source, task, weight_format, quantization)
    except (EngineStartError, OSError):  # the start says it
        return None
    return None if is_ir(target) else _lack(source, directory, by_onnx)


def _conversion(
    source: str,
    task: str | None,
    weight_format: WeightFormat | None,
    quantization: Quantization,
) -> tuple[Path, Path, bool]:
    """The directory to convert, the folder of the result, and whether the ONNX form is taken."""
    directory = path_of(source)
    if os.path.exists(directory):
        _check_directory(directory)
        directory = directory.resolve()
        name, identity = directory.name, _fingerprint(directory)
    elif HUB_ID.fullmatch(source):
        name, identity = source.replace("/", "--"), [source]
    else:
        raise EngineStartError(
            f"there is no model '{source}': give 'demo', a directory in OpenVINO or Hugging Face"
            " form, a .gguf file, or a hub id such as 'org/name'"
        )
    wanted = [weight_format or "auto", quantization.arguments()]
    by_onnx = directory.is_dir() and _is_for_onnx(directory)
    if by_onnx and (weight_format is not None or quantization != _PLAIN):
        raise EngineStartError(
            f"'{source}' is an ONNX model, whose weights stay as they are: leave weight_format out"
        )
    text = json.dumps([identity, wanted, task, by_onnx, _RECIPE])
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    target = Path(cache_dir()) / "converted" / f"{name}-{digest}"
    return directory, target, by_onnx


def _lack(source: str, directory: Path, by_onnx: bool) -> MissingExtraError | None:
    if find_spec("optimum") is not None or by_onnx:
        return None
    what = (
        f"'{source}'"
        if directory.exists()
        else f"'{source}' (no such path, so a model on Hugging Face's hub)"
    )
    return MissingExtraError("optimum", "convert", f"Converting {what}")


def _check_directory(path: Path) -> None:
    if not path.is_dir():
        raise EngineStartError(
            f"'{path}' is a file, but no .gguf file; for other models give their directory"
        )
    if onnx_file(path) is not None and not (path / "tokenizer.json").is_file():
        raise EngineStartError(
            f"'{path}' has an ONNX model and no tokenizer.json: copy that of the model it was made"
            " of there"
        )
    if not _is_for_onnx(path) and (missing := what_is_missing(path)):
        raise EngineStartError(
            f"'{path}' holds no model: neither OpenVINO's files (openvino_model.xml) nor Hugging"
            f" Face's; for those {missing}"
        )


def _is_for_onnx(path: Path) -> bool:
    """Whether a directory's ONNX form is taken: where it has no other, or nothing converts that."""
    if onnx_file(path) is None:
        return False
    return what_is_missing(path) is not None or find_spec("optimum") is None


def _fingerprint(path: Path) -> list[Any]:
    beside = {path / POOLING_CONFIG, *path.glob("onnx/*"), *module_files(path)}
    files = sorted(file for file in (*path.iterdir(), *beside) if file.is_file())
    return [
        str(path),
        *((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files),
    ]


def _download(source: str) -> Path:
    """Download a snapshot of a hub id, with the weights in one format only."""
    hub_id = HUB_ID.fullmatch(source)
    assert hub_id is not None
    hub = require("huggingface_hub", "convert")

    def snapshot(patterns: list[str], ignored: str | None = "*/*") -> Path:
        return Path(
            hub.snapshot_download(
                hub_id["name"],
                revision=hub_id["revision"],
                allow_patterns=patterns,
                ignore_patterns=ignored,
            )
        )

    try:
        path = snapshot([SENTENCE_TRANSFORMERS, POOLING_CONFIG], ignored=None)
        if folders := module_folders(path):
            ends = (".json", ".safetensors")
            snapshot([f"{one.name}/*{end}" for one in folders for end in ends], ignored=None)
        path = snapshot(_HUB_FILES)
        if not any(path.glob("*.safetensors")):
            path = snapshot([*_HUB_FILES, "pytorch_model*.bin"])
    except Exception as error:  # from the hub's client, its HTTP library, or the network
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise EngineStartError(
            f"there is no path '{source}', and the hub does not give it: {reason[0]}"
        ) from None
    _check_directory(path)
    return path


def _convert(
    source: str,
    directory: Path,
    target: Path,
    task: str | None,
    weight_format: WeightFormat | None,
    quantization: Quantization,
    stage: Callable[[str], None],
) -> None:
    """Make `target` of a model in Hugging Face's form, with optimum-intel's exporter."""
    config = read_config(directory)
    task = task or task_of(directory, config)
    check_kind(source, task, config)
    precision = chosen_format(weight_format, directory, task)
    seeing = task == "generate" and is_vision_config(config)
    exported = "image-text-to-text" if seeing else EXPORT_TASKS[task]
    if task == "embed" and is_splade(directory):
        exported = "fill-mask"
    with converted(target) as (partial, log):
        command = [
            *("-m", "optimum.commands.optimum_cli", "export", "openvino"),
            *("--library", "transformers", "--model", str(directory)),
            *("--task", exported, "--weight-format", precision),
            *(*quantization.arguments(), str(partial)),
        ]
        stage("starting the exporter")
        check_loaded(source, task, run_python(source, command, log, stage), log)
        if lacks_token_types(partial):
            stage("converting the tokenizer")
            run_python(source, ["-c", _ADD_TOKEN_TYPES, str(partial)], log, stage)
        if not (partial / "openvino_tokenizer.xml").is_file() or _knows_no_words(partial):
            raise EngineStartError(
                f"'{source}' has no tokenizer that can be converted; is tokenizer.json missing?"
                f" (the log: {log})"
            )
        stage("trying the tokenizer")
        _try_tokenizer(source, partial, log, stage)
        if is_vision_config(config):
            keep_image_settings(directory, partial)
            if task == "embed":
                module = "penstock.engines.openvino.model.vision_ir"
                run_python(source, ["-m", module, str(partial)], log, stage)
        elif task == "generate":
            stage("trying it out")
            _try_out(source, partial, log, stage)
        _keep_beside(directory, partial)
    before, after = weight_bytes(directory), weight_bytes(target)
    say(f"converted {source}: {megabytes(before)} -> {megabytes(after)}, weights in {precision}")


def _knows_no_words(partial: Path) -> bool:
    """Whether the tokenizer is the one that transformers makes up where no files hold one."""
    model = read_config(partial, "tokenizer.json").get("model")
    return isinstance(model, dict) and len(model.get("vocab") or ()) < _FEWEST_WORDS


def _try_out(source: str, partial: Path, log: Path, stage: Callable[[str], None]) -> None:
    run_python(source, ["-m", "penstock.engines.openvino.model.trial", str(partial)], log, stage)


def _try_tokenizer(source: str, partial: Path, log: Path, stage: Callable[[str], None]) -> None:
    """Say so if the converted tokenizer is not the model's own, as far as some texts show."""
    module = "penstock.engines.openvino.model.tokenizer_trial"
    run_python(source, ["-m", module, str(partial)], log, stage)
    if found := tokenizer_trial.reported(log.read_text(encoding="utf-8", errors="replace")):
        say(f"{source}: {found}")


def _read_onnx(
    source: str, directory: Path, target: Path, task: str | None, stage: Callable[[str], None]
) -> None:
    """Make `target` of an ONNX model, which OpenVINO reads itself."""
    config = read_config(directory) or _BARE
    task = task or task_of(directory, config)
    if task not in ("embed", "score"):
        raise EngineStartError(
            f"'{source}': of ONNX models the openvino engine runs those that embed or rerank; give"
            " this one in Hugging Face's form"
        )
    check_kind(source, task, config)
    with converted(target) as (partial, log):
        stage("reading the ONNX model")
        context = str(context_length_of(config))
        module = "penstock.engines.openvino.model.onnx_ir"
        run_python(source, ["-m", module, str(directory), str(partial), context], log, stage)
        (partial / "config.json").write_text(json.dumps(config))
        _keep_beside(directory, partial)


def _keep_beside(directory: Path, partial: Path) -> None:
    for file in {*(directory / name for name in _BESIDE), *module_files(directory)}:
        if file.is_file():
            kept = partial / file.relative_to(directory)
            kept.parent.mkdir(exist_ok=True)
            shutil.copy(file, kept)


def keep_image_settings(directory: Path, target: Path) -> None:
    """Give the converted model its `preprocessor_config.json`, and the one for videos. Newer
    versions of transformers have their content in `processor_config.json`, where the engine does
    not look.
    """
    for medium, name in (("image", "preprocessor_config"), ("video", "video_preprocessor_config")):
        wanted = target / f"{name}.json"
        if (directory / wanted.name).is_file():
            shutil.copy(directory / wanted.name, wanted)
        elif not wanted.is_file() and (found := directory / "processor_config.json").is_file():
            settings = json.loads(found.read_bytes()).get(f"{medium}_processor")
            if settings:
                wanted.write_text(json.dumps(settings))


@contextmanager
def _progress(source: str) -> Iterator[Callable[[str], None]]:
    """Show the conversion on stderr. Yields a function that sets the name of the stage."""
    title = f"converting {source} (once)"
    if not is_terminal():
        say(f"{title} …")
        yield lambda stage: None
        return
    from tqdm import tqdm

    with tqdm(desc=title, bar_format="{desc} ({elapsed})", leave=False) as line:
        yield lambda stage: line.set_description_str(f"{title}: {stage}")
