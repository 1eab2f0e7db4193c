"""scripts/gpu_check.sh, as far as a CPU allows."""

import re
import shlex
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]


def check(*args, **env):
    return subprocess.run(
        [ROOT / "scripts/gpu_check.sh", *args],
        capture_output=True,
        text=True,
        env={"PATH": "/usr/bin:/bin", **env},
        timeout=60,
    )


def test_its_steps_are_files_that_exist_and_take_ten_minutes_at_most():
    done = check("--dry-run", MODEL="m")
    assert done.returncode == 0, done.stderr
    steps = re.findall(r"^(\w+) +at most +(\d+) s: (.*)$", done.stdout, re.MULTILINE)
    names = [name for name, _, _ in steps]
    assert names == ["machine", "contract", "serving", "streaming", "batch", "sglang", "model"]
    assert sum(int(seconds) for _, seconds, _ in steps) <= 600
    for _, _, command in steps:
        for word in shlex.split(command):
            if word.endswith((".py", "tickets.jsonl")):
                assert (ROOT / word).is_file()


def test_sglang_can_be_left_out():
    assert "sglang" not in check("--dry-run", SGLANG="0").stdout


def test_without_a_gpu_it_says_so(tmp_path):
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nexit 9\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    done = check(PATH=f"{tmp_path}:/usr/bin:/bin")
    assert done.returncode == 2
    assert done.stderr.startswith("there is no NVIDIA GPU here")


def test_an_unknown_option_is_refused():
    assert check("--all").returncode == 2
