"""What README.md, docs/batch.md and docs/decisions.md tell people to type works as it stands. The
two set-up lines are run by .ci/run.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from penstock.demo import tickets_path
from word_models import CONTEXT, embedding_model

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
PAGES = ("README.md", "docs/batch.md", "docs/decisions.md")


def blocks(page, language):
    text = (ROOT / page).read_text(encoding="utf-8")
    return [body for name, body in BLOCK.findall(text) if name == language]


@pytest.fixture
def folder(tmp_path):
    shutil.copy(tickets_path(), tmp_path / "tickets.jsonl")
    (tmp_path / "minilm").mkdir()
    config = Path(embedding_model(tmp_path / "minilm")) / "config.json"
    config.write_text(config.read_text().replace(f": {CONTEXT}", ": 512"))
    for page in PAGES:
        for body in blocks(page, "yaml"):
            name, _, content = body.partition("\n")
            if name.startswith("# "):  # a file, by its name
                (tmp_path / name[2:]).write_text(content)
    return tmp_path


def run(argv, folder):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        argv,
        cwd=folder,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


COMMANDS = [
    line
    for page in PAGES
    for block in blocks(page, "")
    for line in block.splitlines()
    # Has no end.
    if line.startswith("penstock ")
    and "INPUT" not in line
    and not line.endswith("\\")
    and not line.startswith("penstock serve")
]


def test_there_are_commands():
    assert any(line.startswith("penstock run") for line in COMMANDS)


@pytest.mark.parametrize("line", COMMANDS)
def test_commands(line, folder):
    run(["bash", "-euc", line], folder)


@pytest.mark.parametrize("page", PAGES)
def test_python(page, folder):
    for code in blocks(page, "python"):
        assert run([sys.executable, "-c", code], folder)
