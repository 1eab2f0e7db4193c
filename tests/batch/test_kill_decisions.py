"""A job that decides on the embedded engine, ended by SIGKILL and started again: the output is that
of one run.
"""

import json
import signal
import subprocess
import sys
import time

import pytest

from penstock.demo import tickets_path

pytestmark = pytest.mark.slow

QUESTIONS = [
    {"name": "mood", "instructions": "How is the customer?", "options": ["angry", "happy"]},
    {"name": "late", "instructions": "Is something late?"},
]


def command(folder, name, together=16):
    (folder / "questions.json").write_text(json.dumps(QUESTIONS))
    options = ["--prompt", "{ticket}", "--decide", "questions.json", "--limit", "80"]
    engine = ["--engine-kwargs", json.dumps({"max_num_seqs": together})]
    program = [sys.executable, "-m", "penstock.cli", "run", tickets_path(), "-o", name]
    return [*program, *options, *engine]


def settled(path):
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        del row["latency_ms"], row["attempts"], row["usage"]["cached_tokens"]
    return rows


def journaled(output):
    folder = output.with_name(f"{output.name}.penstock")
    return sum(path.read_bytes().count(b"\n") for path in folder.glob("rows-*"))


def test_a_killed_job_goes_on_with_equal_decisions(tmp_path):
    subprocess.run(command(tmp_path, "whole.jsonl"), cwd=tmp_path, timeout=300, check=True)
    output = tmp_path / "out.jsonl"
    job = subprocess.Popen(command(tmp_path, "out.jsonl"), cwd=tmp_path, stderr=subprocess.DEVNULL)
    with job:
        while journaled(output) < 20 and job.poll() is None:
            time.sleep(0.002)
        job.kill()
    assert job.returncode == -signal.SIGKILL
    assert not output.exists()
    resumed = subprocess.run(
        command(tmp_path, "out.jsonl", together=3),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    assert "from an earlier run" in resumed.stderr
    assert settled(output) == settled(tmp_path / "whole.jsonl")
