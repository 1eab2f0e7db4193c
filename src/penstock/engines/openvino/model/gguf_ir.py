"""The graph of a GGUF model as OpenVINO's files, which GenAI writes while it loads the model. The
first start of an engine keeps them for the next one.

Run as a program it writes them beside the file that is named, where nothing has kept them: GenAI
holds the interpreter lock meanwhile, which would stop an engine that answers others.

GenAI 2026.4.1 leaves out what scales a model's rotary frequencies, and splits texts for most
tokenizers in the default way. Both are mended in the files, so such a model is loaded from them.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import openvino_genai as genai
from openvino import opset13 as ops

from penstock import private_files
from penstock.engines.disk.sources import locked, partial_of
from penstock.engines.openvino.model.exporter import converted, run_python
from penstock.engines.openvino.model.gguf import Header, read_header
from penstock.env import cache_dir
from penstock.errors import EngineStartError

_SAVING = {"enable_save_ov_model": True}
_MADE = ("openvino_model.xml", "openvino_tokenizer.xml", "openvino_detokenizer.xml")
_ROPE_BASE = 10000.0
"""Of a model that states none."""
_SPACE = 3
"""Free space that is needed, in sizes of the file."""


def saved_ir(path: Path) -> Path:
    """The directory with the graph of the GGUF file `path`. Made at the first call and cached until
    the file changes; the copy is as large as the weights in 16 bits, or as in the file where they
    have 4 or 8.
    """
    target = _place(path)
    if _is_whole(target):
        return target
    try:
        private_files.make_folder(target.parent)
        with locked(target, lambda _: None):
            if not _is_whole(target):  # no other process has made it meanwhile
                _write(path, target)
    except OSError as error:
        raise EngineStartError(f"the graph of '{path}' could not be written: {error}") from None
    return target


@contextmanager
def keeping(path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """What to load the GGUF file `path` by: a path, and properties for model and tokenizer. The
    first time GenAI writes the graph while it loads the file; it is kept if the context ends well.
    From then on the path is that of the graph, which loads faster.
    """
    if read_header(Path(path)).needs_mending:
        yield str(saved_ir(Path(path))), {}
        return
    target = _place(Path(path))
    with ExitStack() as held:
        partial = None if _is_whole(target) else _begin(Path(path), target, held)
        if _is_whole(target):  # perhaps only now, by another process
            yield str(target), {}
        elif partial is None:
            yield path, {}
        else:
            yield str(partial / Path(path).name), _SAVING
            (partial / Path(path).name).unlink()
            if _is_whole(partial):
                shutil.rmtree(target, ignore_errors=True)  # an older, incomplete one
                partial.rename(target)


def _begin(path: Path, target: Path, held: ExitStack) -> Path | None:
    """A folder to make `target` in, with a link to the file; None where there is no room."""
    try:
        private_files.make_folder(target.parent)
        if shutil.disk_usage(target.parent).free < _SPACE * path.stat().st_size:
            return None
        held.enter_context(locked(target, lambda _: None))
        if _is_whole(target):
            return None
        partial = partial_of(target)
        held.callback(shutil.rmtree, partial, ignore_errors=True)
        (partial / path.name).symlink_to(path.resolve())
    except OSError:
        return None
    return partial


def _place(path: Path) -> Path:
    stat = path.stat()
    mended = " mended" if read_header(path).needs_mending else ""
    identity = f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns} {genai.get_version()}{mended}"
    digest = hashlib.sha256(identity.encode()).hexdigest()[:12]
    return Path(cache_dir()) / "converted" / f"{path.stem}-{digest}"


def _is_whole(folder: Path) -> bool:
    return all((folder / name).is_file() for name in _MADE)


def _write(path: Path, target: Path) -> None:
    with converted(target) as (partial, log):
        link = partial / path.name
        link.symlink_to(path.resolve())
        module = "penstock.engines.openvino.model.gguf_ir"
        run_python(str(path), ["-m", module, str(link)], log, lambda stage: None)
        link.unlink()
        shutil.rmtree(target, ignore_errors=True)  # an older, incomplete one


def main(path: str) -> None:
    """Load the GGUF file `path`, which writes its graph beside it."""
    scheduler = genai.SchedulerConfig()
    scheduler.num_kv_blocks = 1
    genai.ContinuousBatchingPipeline(path, scheduler, "CPU", _SAVING, _SAVING)
    header, folder = read_header(Path(path)), Path(path).parent
    if header.scales_rope:
        _mend(folder / _MADE[0], lambda model: scale_rope(model, header))
    if (split := header.split) is not None:
        _mend(folder / _MADE[1], lambda model: split_texts(model, split))


def _mend(file: Path, change: Callable[[Any], None]) -> None:
    """Change a graph. What holds its weights is read from the old file, so a new one is written."""
    import_module("openvino_tokenizers")  # its operations are known from then on
    model = ov.Core().read_model(file)
    change(model)
    new = file.with_name(f"mended_{file.name}")
    ov.save_model(model, new, compress_to_fp16=False)
    del model
    for end in (".bin", ".xml"):
        new.with_suffix(end).replace(file.with_suffix(end))


def scale_rope(model: Any, header: Header) -> None:
    """Put the model's own rotary frequencies into a graph, where GenAI has those of an unscaled
    model.
    """
    divisor = np.array(header.rope_factors or [1.0], np.float64) * header.rope_divisor
    base = float(header.of_architecture("rope.freq_base") or _ROPE_BASE)
    for node in model.get_ops():
        shape = list(node.get_output_shape(0)) if node.get_type_name() == "Constant" else []
        if len(shape) != 3 or shape[1] == 1 or shape[0] * shape[2] != 1:
            continue
        unscaled = base ** (-np.arange(shape[1]) / shape[1])
        if np.allclose(np.asarray(node.get_data(), np.float64).ravel(), unscaled, rtol=2e-3):
            scaled = (unscaled / divisor).astype(np.float32).reshape(shape)
            (user,) = node.output(0).get_target_inputs()
            old = user.get_node() if user.get_node().get_type_name() == "Convert" else node
            old.output(0).replace(ops.constant(scaled).output(0))
            return
    raise EngineStartError("the rotary frequencies were not found in the graph of the GGUF file")


def split_texts(model: Any, pattern: str) -> None:
    """Let a tokenizer split texts by one regular expression."""
    first, *others = (op for op in model.get_ordered_ops() if op.get_type_name() == "RegexSplit")
    for one in others:
        for place, output in enumerate(one.outputs()):
            output.replace(one.input_value(place))
    written = np.frombuffer(pattern.encode(), np.uint8)
    place = first.get_input_size() - 1
    first.input(place).replace_source_output(ops.constant(written).output(0))


if __name__ == "__main__":
    main(sys.argv[1])
