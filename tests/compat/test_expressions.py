"""Expressions of Ray's users give here what they give there, or a reason says why not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import ray_expressions

HELD: dict[str, Any] = json.loads(ray_expressions.RECORD.read_text())
GIVES, DIFFERS = HELD["gives"], HELD["differs"]
"""What Ray gives; and by the reason, as the page states it, what gives something else here."""
PAGE = Path(__file__).parents[2] / "docs/from-ray-configuration.md"


def test_what_ray_gives_is_given_here() -> None:
    ours = ray_expressions.ours()
    assert ours.keys() == GIVES.keys()
    differ = {one: (GIVES[one], ours[one]) for one in GIVES if GIVES[one] != ours[one]}
    reasoned = [one for several in DIFFERS.values() for one in several]
    assert {one: both for one, both in differ.items() if one not in reasoned} == {}
    assert [one for one in reasoned if one not in differ] == []
    assert len(reasoned) == len(set(reasoned))


def test_each_reason_is_documented() -> None:
    page = " ".join(PAGE.read_text().split())
    assert [reason for reason in DIFFERS if reason not in page] == []
    assert f"{len(GIVES)} expressions, of which {sum(map(len, DIFFERS.values()))} give" in page


@pytest.mark.ray
def test_the_record_is_rays() -> None:
    ray = pytest.importorskip("ray")
    if ray.__version__ != HELD["ray"]:
        pytest.skip(f"the record is of Ray {HELD['ray']}")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", ray_expressions.__file__], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout) == GIVES
