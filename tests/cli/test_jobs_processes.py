"""`penstock jobs` beside a `penstock run` in a process of its own."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
PENSTOCK = str(Path(sys.executable).with_name("penstock"))


@pytest.fixture
def job(tmp_path, monkeypatch):
    """A job that runs, with at least 5 rows done."""
    monkeypatch.setenv("PENSTOCK_STATE_DIR", str(tmp_path / "state"))
    (tmp_path / "in.jsonl").write_text("".join(f'{{"text": "row {n}"}}\n' for n in range(5000)))
    engine = json.dumps({"max_num_seqs": 4, "time_per_token_ms": 5})
    argv = [PENSTOCK, "run", "in.jsonl", "-o", "out.jsonl", "--prompt", "{text}", "-q"]
    argv += ["--model", "simulated", "--engine-kwargs", engine, "--report", "job.html"]
    with subprocess.Popen(argv, cwd=tmp_path, start_new_session=True) as running:
        while (found := jobs("list")) == [] or found[0]["rows"] < 5:
            assert running.poll() is None
        yield running, tmp_path
        running.kill()


def jobs(*arguments):
    argv = [PENSTOCK, "jobs", *map(str, arguments), "--json"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def steer(word, job):
    argv = [PENSTOCK, "jobs", word, str(job)]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60)


def test_a_job_is_paused_goes_on_and_is_cancelled_from_another_terminal(job):
    running, folder = job
    output = folder / "out.jsonl"
    assert "  paused  " in steer("pause", output).stdout
    before = jobs("show", output)[0]["rows"]
    while (now := jobs("show", output)[0]["rows"]) != before:  # those in flight
        before = now
    assert jobs("list", folder)[0]["state"] == "paused"
    assert "  running  " in steer("resume", output).stdout
    while jobs("show", output)[0]["rows"] <= before:
        pass
    assert len(steer("tail", output).stdout.splitlines()) == 10
    assert "  stopping  " in steer("cancel", jobs("list")[0]["id"]).stdout
    assert running.wait(60) == 128 + signal.SIGTERM
    assert jobs("list")[0]["state"] == "stopped"
    assert "stopped; it can be resumed" in (folder / "job.html").read_text()
    refused = steer("pause", output)
    assert (refused.returncode, refused.stderr) == (
        1,
        f"penstock: {output} does not run: it is stopped\n",
    )


def test_a_killed_job_is_interrupted_whatever_has_its_process_id(job):
    running, folder = job
    running.send_signal(signal.SIGKILL)
    running.wait(60)
    status = folder / "out.jsonl.penstock" / "status.json"
    written = json.loads(status.read_bytes())
    status.write_text(json.dumps(written | {"pid": os.getpid()}))
    assert jobs("list")[0]["state"] == "interrupted"
    assert "is interrupted" in steer("cancel", folder / "out.jsonl").stderr
