"""The graph of a GGUF model as OpenVINO's files, which GenAI writes while it loads the model.

Run as a program it writes them beside the file that is named: GenAI holds the interpreter lock
meanwhile, which would stop an engine that answers others.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import openvino_genai as genai

from penstock import private_files
from penstock.engines.model_files import locked, partial_of
from penstock.engines.process import end_with_parent
from penstock.env import cache_dir
from penstock.errors import EngineError


def saved_ir(path: Path) -> Path:
    """The directory with the graph of the GGUF file `path`. Made at the first call and cached until
    the file changes; the copy is as large as the weights in 16 bits.
    """
    stat = path.stat()
    identity = f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns} {genai.get_version()}"
    digest = hashlib.sha256(identity.encode()).hexdigest()[:12]
    target = Path(cache_dir()) / "converted" / f"{path.stem}-{digest}"
    if (target / "openvino_model.xml").is_file():
        return target
    private_files.make_folder(target.parent)
    with locked(target, lambda _: None):
        if not (target / "openvino_model.xml").is_file():  # nobody else was faster
            _write(path, target)
    return target


def _write(path: Path, target: Path) -> None:
    partial = partial_of(target)
    try:
        link = partial / path.name
        link.symlink_to(path.resolve())
        module = "penstock.engines.openvino.gguf_ir"
        command = [sys.executable, "-m", module, str(link), str(os.getpid())]
        # The child ends when the pipe to it closes, so it does not outlive this process.
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as child:
            if child.wait():
                raise EngineError("the graph of the GGUF model could not be written")
        link.unlink()
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def main(path: str, parent: int) -> None:
    """Load the GGUF file `path`, which writes its graph beside it, for the process `parent`."""
    end_with_parent(sys.stdin.fileno(), parent)
    scheduler = genai.SchedulerConfig()
    scheduler.num_kv_blocks = 1
    genai.ContinuousBatchingPipeline(path, scheduler, "CPU", {"enable_save_ov_model": True})


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
