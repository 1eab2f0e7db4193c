"""The graph of a GGUF model as OpenVINO's files, which GenAI writes while it loads the model. The
first start of an engine keeps them for the next one.

Run as a program it writes them beside the file that is named, where nothing has kept them: GenAI
holds the interpreter lock meanwhile, which would stop an engine that answers others.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import openvino_genai as genai

from penstock import private_files
from penstock.engines.disk.sources import atomic_folder, locked, partial_of
from penstock.engines.process import end_with_parent, modules_of_this, python
from penstock.env import cache_dir
from penstock.errors import EngineError

_SAVING = {"enable_save_ov_model": True}
_MADE = ("openvino_model.xml", "openvino_tokenizer.xml", "openvino_detokenizer.xml")
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
    private_files.make_folder(target.parent)
    with locked(target, lambda _: None):
        if not _is_whole(target):  # no other process has made it meanwhile
            _write(path, target)
    return target


@contextmanager
def keeping(path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """What to load the GGUF file `path` by: a path, and properties for model and tokenizer. The
    first time GenAI writes the graph while it loads the file; it is kept if the context ends well.
    From then on the path is that of the graph, which loads faster.
    """
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
    identity = f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns} {genai.get_version()}"
    digest = hashlib.sha256(identity.encode()).hexdigest()[:12]
    return Path(cache_dir()) / "converted" / f"{path.stem}-{digest}"


def _is_whole(folder: Path) -> bool:
    return all((folder / name).is_file() for name in _MADE)


def _write(path: Path, target: Path) -> None:
    with atomic_folder(target) as partial:
        link = partial / path.name
        link.symlink_to(path.resolve())
        module = "penstock.engines.openvino.model.gguf_ir"
        command = python("-m", module, str(link), str(os.getpid()))
        # The child ends when the pipe to it closes, so it does not outlive this process.
        with subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=modules_of_this(),
        ) as child:
            if child.wait():
                raise EngineError("the graph of the GGUF model could not be written")
        link.unlink()
        shutil.rmtree(target, ignore_errors=True)  # an older, incomplete one


def main(path: str, parent: int) -> None:
    """Load the GGUF file `path`, which writes its graph beside it, for the process `parent`."""
    end_with_parent(sys.stdin.fileno(), parent)
    scheduler = genai.SchedulerConfig()
    scheduler.num_kv_blocks = 1
    genai.ContinuousBatchingPipeline(path, scheduler, "CPU", _SAVING, _SAVING)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
