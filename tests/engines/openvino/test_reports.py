"""OpenVINO reports imports to Google Analytics, if it finds the package `openvino_telemetry`."""

import subprocess
import sys
from pathlib import Path

import pytest

from penstock.engines.openvino.model.exporter import run_python

_IMPORT = "import openvino_telemetry"


def test_openvino_finds_nothing_to_report_with() -> None:
    """Each file of ours that imports OpenVINO lies below this package."""
    code = f"import penstock.engines.openvino\n{_IMPORT}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "import of openvino_telemetry halted" in done.stderr


@pytest.mark.parametrize("kind", ["-c", "-m"])
def test_neither_does_the_exporter(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = (
        "import sys\nprint(sys.argv[1:], __name__)\n"
        f"try:\n {_IMPORT}\nexcept ImportError:\n print('none')"
    )
    (tmp_path / "an_exporter.py").write_text(program)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    rows = tmp_path / "rows"
    rows.mkdir()
    (rows / "runpy.py").write_text("raise SystemExit('taken for that of Python')")
    monkeypatch.chdir(rows)
    arguments = [kind, program if kind == "-c" else "an_exporter", "one", "two"]
    run_python("a model", arguments, tmp_path / "log", lambda stage: None)
    assert (tmp_path / "log").read_text() == "['one', 'two'] __main__\nnone\n"
