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
import tempfile
from pathlib import Path

import openvino_genai as genai

from penstock import private_files
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
    made = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}-"))
    try:
        link = made / path.name
        link.symlink_to(path.resolve())
        done = subprocess.run(
            [sys.executable, "-m", "penstock.engines.openvino.gguf_ir", str(link)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
        )
        if done.returncode:
            raise EngineError("the graph of the GGUF model could not be written")
        link.unlink()
        os.rename(made, target)
    except OSError:
        if not (target / "openvino_model.xml").is_file():  # nobody else was faster
            raise
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return target


def main(path: str) -> None:
    """Load the GGUF file `path`, which writes its graph beside it."""
    scheduler = genai.SchedulerConfig()
    scheduler.num_kv_blocks = 1
    genai.ContinuousBatchingPipeline(path, scheduler, "CPU", {"enable_save_ov_model": True})


if __name__ == "__main__":
    main(sys.argv[1])
