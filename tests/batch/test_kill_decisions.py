"""A job that decides on the embedded engine, also with two models, ended by SIGKILL and started
again: the output is that of one run.
"""

import json
import signal
import subprocess
import sys
import time

import pytest

from penstock.demo import tickets_path
from rounded_model import rounded_model

pytestmark = pytest.mark.slow

QUESTIONS = [
    {"name": "mood", "instructions": "How is the customer?", "options": ["angry", "happy"]},
    {"name": "late", "instructions": "Is something late?"},
]


SCHEMA = {
    "type": "object",
    "properties": {"team": {"enum": ["billing", "refund", "shipping", "technical"]}},
    "required": ["team"],
}


def command(folder, name, together=16, asked=("--decide", "questions.json")):
    (folder / "questions.json").write_text(json.dumps(QUESTIONS))
    (folder / "schema.json").write_text(json.dumps(SCHEMA))
    options = ["--prompt", "{ticket}", *asked, "--limit", "80"]
    # What is computed may depend on what runs beside it: of decisions, with AMX.
    given = {"max_num_seqs": together, "deterministic": True}
    engine = ["--engine-kwargs", json.dumps(given)]
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


@pytest.mark.parametrize("kind", ["decisions", "cascade", "cascade of answers"])
def test_a_killed_job_goes_on_with_equal_answers(tmp_path, kind):
    asked = ["--decide", "questions.json"]
    if kind != "decisions":
        rounded_model(tmp_path / "small", 2)
        asked = ["--model", "small", "--cascade", "demo", "--target-accuracy", "0.8", *asked]
    if kind == "cascade of answers":
        asked[-2:] = ["--schema", "schema.json", "--max-tokens", "60"]
    whole = command(tmp_path, "whole.jsonl", asked=asked)
    subprocess.run(whole, cwd=tmp_path, timeout=300, check=True)
    output = tmp_path / "out.jsonl"
    first = command(tmp_path, "out.jsonl", asked=asked)
    job = subprocess.Popen(first, cwd=tmp_path, stderr=subprocess.DEVNULL)
    with job:
        while journaled(output) < 20 and job.poll() is None:
            time.sleep(0.002)
        job.kill()
    assert job.returncode == -signal.SIGKILL
    assert not output.exists()
    resumed = subprocess.run(
        command(tmp_path, "out.jsonl", together=3, asked=asked),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    assert "from an earlier run" in resumed.stderr
    assert settled(output) == settled(tmp_path / "whole.jsonl")
