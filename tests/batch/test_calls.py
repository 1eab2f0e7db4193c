"""How many of Penstock's functions a row calls, and how deep they stand on each other."""

import runpy
from math import inf
from pathlib import Path
from types import SimpleNamespace

import pytest

from penstock.batch.pipeline import offload, processor_rows

TOOL = Path(__file__).parents[2] / "tools" / "count_calls.py"


@pytest.fixture(scope="module")
def tool():
    return SimpleNamespace(**runpy.run_path(str(TOOL)))


@pytest.fixture
def no_clock(monkeypatch):
    """All calls of a user's functions are quick, however busy this machine is."""
    for name in ("QUICK_SECONDS", "_MEAN_SECONDS", "_STALL_SECONDS"):
        monkeypatch.setattr(offload, name, inf)
    monkeypatch.setattr(processor_rows, "_TURN_SECONDS", inf)


@pytest.mark.parametrize(("path", "most"), [("row", 70), ("processor", 95)])
def test_a_row_calls_few_functions(tool, path, most, no_clock):
    calls, deepest, functions = tool.measured(tool.PATHS[path], few=200, many=600)
    assert calls <= most, functions[:20]
    assert len(deepest) <= 12, deepest


def test_only_functions_of_penstock_are_counted(tool):
    with tool.counting() as found:
        tool.json.dumps({})
        tool.Usage(1, 2).__add__(tool.Usage())
    assert [code.co_name for code in found.by_code] == ["__add__"]
