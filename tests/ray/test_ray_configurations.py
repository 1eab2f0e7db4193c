"""Configurations of Ray's users mean here what they mean to Ray: both are asked, and compared."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import ray_configurations as cases
import ray_expressions
from penstock.llm_config.engine_config import NAMES

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore")]

ray = pytest.importorskip("ray")
ray_llm = pytest.importorskip("ray.llm")
rays_accelerators = pytest.importorskip("ray.util.accelerators.accelerators")
PAGE = Path(__file__).parents[2] / "docs/from-ray-configuration.md"
HELD: str = json.loads(ray_expressions.RECORD.read_text())["ray"]
"""The version of Ray that ours is held against; others have other configurations."""

REASONED = {
    "an engine of ours": "there are more engines",
    "SGLang to embed": "there are more tasks",
    "adapters here": "adapters may lie in a local directory",
    "no statistics but metrics": "what is counted does not come from vLLM's statistics",
    "a topology of GPUs": "Ray drops it",
    "an empty list of bundles": "an engine has a worker",
    "an unknown field of autoscaling": "Ray drops it",
    "an unknown field of the deployment": "Ray refuses it later, when it deploys",
    "an unknown experiment": "Ray drops it",
    "vLLM a misspelt accelerator": "Ray waits for such a machine for ever",
    "group of one": "a group of one has nothing to balance",
}
REASONED_DEPLOYMENTS = {
    "both set variables": ({"runtime_env"}, "variables are joined one by one"),
}


@pytest.fixture(scope="module")
def rays() -> dict[str, Any]:
    if ray.__version__ != HELD:
        pytest.skip(f"the comparison is with Ray {HELD}")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", cases.__file__], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def ours() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(cases.answers(cases.ours()), default=str))
    return found


def test_the_same_is_accepted_and_refused(rays: dict[str, Any], ours: dict[str, Any]) -> None:
    theirs, mine = rays["verdicts"], ours["verdicts"]
    differ = {name for name in theirs if bool(theirs[name]) != bool(mine[name])}
    assert {name: (theirs[name], mine[name]) for name in differ - REASONED.keys()} == {}
    assert differ == REASONED.keys()


def test_workers_are_placed_alike(rays: dict[str, Any], ours: dict[str, Any]) -> None:
    assert ours["placements"] == rays["placements"]


def test_deployments_are_alike(rays: dict[str, Any], ours: dict[str, Any]) -> None:
    found = {}
    for name, theirs in rays["deployments"].items():
        mine = ours["deployments"][name]
        fields = {f for f in theirs.keys() | mine.keys() if theirs.get(f) != mine.get(f)}
        if fields != REASONED_DEPLOYMENTS.get(name, (set(), ""))[0]:
            found[name] = {field: (theirs.get(field), mine.get(field)) for field in fields}
    assert found == {}


def test_engines_of_processors_reserve_alike(rays: dict[str, Any], ours: dict[str, Any]) -> None:
    assert ours["stages"] == rays["stages"]


def test_accelerators_are_rays() -> None:
    known = {v for n, v in vars(rays_accelerators).items() if n.isupper() or "x" in n}
    names = {value for value in known if isinstance(value, str)}
    assert names == NAMES if ray.__version__ == HELD else names <= NAMES


def test_each_variable_of_rays_environment_is_explained() -> None:
    page = PAGE.read_text()
    root = Path(ray_llm.__path__[0])
    found = set()
    names = re.compile(r'"((?:RAYLLM|RAY_SERVE_LLM|DEFAULT_MULTIPLEX)_\w+)"')
    for file in root.rglob("*.py"):
        found |= set(names.findall(file.read_text()))
    assert {name for name in found if f"`{name}`" not in page} == set()


def test_each_reasoned_difference_is_documented() -> None:
    page = " ".join(PAGE.read_text().split())
    reasons = [*REASONED.values(), *(reason for _, reason in REASONED_DEPLOYMENTS.values())]
    assert [reason for reason in reasons if reason not in page] == []
