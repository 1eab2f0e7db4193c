"""Runs the exporter, and what else converts models, in a process that ends with this one."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from penstock import private_files
from penstock.engines.disk.sources import atomic_folder
from penstock.engines.process import python, with_docstrings
from penstock.errors import EngineStartError

_COMPRESSING = re.compile(r"Applying .*?(\d+)\s?%")
_ERROR_LINE = re.compile(r"[\w.]*(Error|Exception|Interrupt)\b")
_NEWEST = re.compile(r"version of Transformers .*Maximum required is ([\d.]*\d)")
_NOT_LOADED = re.compile(r"(\S.*?)\s*\|\s*(?:MISSING|MISMATCH)\b")
"""A line of transformers' report: the name of a weight that the files lack, or have in another
shape.
"""
_TIED = """\
import runpy, sys
packages, parent, kind, program, *arguments = sys.argv[1:]
sys.path.insert(0, packages)
import penstock.engines.openvino
from penstock.engines.process import die_with_parent
die_with_parent(int(parent))
del sys.path[0]
sys.argv[1:] = arguments
if kind == "-m":
    runpy.run_module(program, run_name="__main__", alter_sys=True)
else:
    exec(program)
"""
"""Runs a module or a text as Python's -m and -c do. Before: the folder of this package, and the
parent's id. The exporter and its libraries report nothing to anybody: they find no
`openvino_telemetry` once our package is imported.
"""
_PACKAGES = Path(__file__).parents[4]


def check_loaded(source: str, task: str, not_loaded: list[str], log: Path) -> None:
    """Refuse a model of which weights are missing: transformers takes random numbers for them."""
    if task == "embed":  # of hidden states: what makes one vector of them has no part in that
        not_loaded = [name for name in not_loaded if "pooler" not in name.split(".")]
    if not_loaded:
        raise EngineStartError(
            f"'{source}' {_unfit(not_loaded)}: fetch the whole model, or leave out a task that it"
            f" was not made for (the log: {log})"
        )


def _unfit(names: list[str]) -> str:
    shown = ", ".join(names[:3] + ["…"] * (len(names) > 3))
    return f"has no weights, or none of the shape in its config.json, for {shown}"


@contextmanager
def converted(target: Path) -> Iterator[tuple[Path, Path]]:
    """The folder that becomes `target`, and the file of a log, which stays if it does not. Hold the
    lock.
    """
    log = target.with_name(f"{target.name}.log")
    log.unlink(missing_ok=True)
    with atomic_folder(target) as partial:
        yield partial, log
    log.unlink()


def run_python(
    source: str, arguments: list[str], log: Path, stage: Callable[[str], None]
) -> list[str]:
    """Run Python with `arguments` and append its output to `log`. Returns the names of weights that
    were reported as not loaded. Raises `EngineStartError` with its last error line.
    """
    last_line, not_loaded = "", list[str]()
    with open(log, "a", opener=private_files.opener) as file:
        # All files are local by now. In offline mode the exporter does not ask the hub for optional
        # files.
        exporter = subprocess.Popen(
            python("-c", _TIED, str(_PACKAGES), str(os.getpid()), *arguments),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            # Unbuffered, so that the last line is what came last.
            env={**with_docstrings(), "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"},
            umask=0o077,
        )
        assert exporter.stdout is not None
        with exporter:
            for line in exporter.stdout:
                file.write(line)
                if (done := _COMPRESSING.search(line)) is not None:
                    stage(f"compressing the weights, {done[1]} %")
                if line.startswith("Loading weights"):
                    stage("exporting" if "100%" in line else "loading weights")
                if (found := _NOT_LOADED.match(line)) is not None:
                    not_loaded.append(found[1])
                if _ERROR_LINE.match(line) or (line.strip() and not _ERROR_LINE.match(last_line)):
                    last_line = line.strip()
    if exporter.returncode:
        reason = last_line or f"the exporter ended with exit code {exporter.returncode}"
        if not_loaded:
            reason = f"it {_unfit(not_loaded)}"
        if newest := _NEWEST.search(reason):
            reason += f"; for the conversion, pip install 'transformers<={newest[1]}'"
        raise EngineStartError(f"'{source}' could not be converted: {reason} (the log: {log})")
    return not_loaded
