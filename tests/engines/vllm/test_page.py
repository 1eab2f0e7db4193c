"""The commands of docs/engines.md that need vLLM."""

import shlex
import shutil
from contextlib import chdir

import pytest

import book
from penstock.demo import model_path, tickets_path
from serve_process import serving

pytestmark = pytest.mark.vllm
LINES = [line for line in book.commands("docs/engines.md", "penstock") if "--engine vllm" in line]


@pytest.mark.parametrize("line", LINES)
def test_a_command(line, tmp_path):
    (tmp_path / "llama").symlink_to(model_path("huggingface"))
    shutil.copy(tickets_path(), tmp_path / "tickets.jsonl")
    if line.startswith("penstock serve"):
        with chdir(tmp_path), serving(*shlex.split(line)[2:]) as server:
            assert server.stop() == 0
        return
    book.run(["bash", "-euc", f"{line} --limit 20"], tmp_path, timeout=600)
