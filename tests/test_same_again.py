"""The check of `--deterministic` in scripts, in small: on the demo model, and on a real one where
it is here.
"""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[1] / "scripts" / "same_again.py"


@pytest.mark.parametrize("name", ["demo", pytest.param("smollm2", marks=pytest.mark.nightly)])
def test_rows_are_answered_the_same_again(name, request):
    model = name if name == "demo" else request.getfixturevalue(name)
    small = ["--rows", "20", "--shuffles", "1", "--kills", "1", "--tokens", "8"]
    done = subprocess.run(
        [sys.executable, SCRIPT, "--model", model, *small],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("20 of 20") == 7
    assert done.stdout.endswith("\n0 texts differ\n")
