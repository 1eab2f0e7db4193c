"""The process in which models are converted."""

import pytest

from penstock.engines.openvino.model.exporter import run_python
from penstock.errors import EngineStartError


def test_it_keeps_the_docstrings_that_openvino_reads(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONOPTIMIZE", "2")
    program = "'kept'\nraise SystemExit(f'Error: {__doc__}')"
    with pytest.raises(EngineStartError, match="Error: kept"):
        run_python("a model", ["-c", program], tmp_path / "log", lambda stage: None)
