"""How many of Penstock's functions a token and a call of a program call."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "count_calls.py"


@pytest.fixture(scope="module")
def tool():
    return SimpleNamespace(**runpy.run_path(str(TOOL)))


@pytest.mark.parametrize(("path", "most"), [("token", 18), ("replica", 30), ("call", 165)])
def test_few_functions_are_called(tool, path, most):
    calls, deepest, functions = tool.measured(tool.PATHS[path], few=50, many=150)
    assert calls <= most, functions[:20]
    assert len(deepest) <= 12, deepest
