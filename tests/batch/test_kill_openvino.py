"""A deterministic job on the embedded engine, ended by SIGKILL at five moments and started again
with other neighbours: the output is that of one run.
"""

import json
import random
import signal
import subprocess
import sys
import time

import pytest

from penstock.demo import tickets_path

pytestmark = pytest.mark.slow


def command(output, together=16):
    options = ["--model", "demo", "--prompt", "{ticket}", "--max-tokens", "100", "--deterministic"]
    engine = ["--engine-kwargs", json.dumps({"max_num_seqs": together})]
    return [
        sys.executable,
        "-m",
        "penstock.cli",
        "run",
        tickets_path(),
        "-o",
        output,
        *options,
        *engine,
    ]


def settled(output):
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    for row in rows:
        del row["latency_ms"], row["attempts"]
    return rows


def journaled(output):
    """Rows in the journal, whole or torn."""
    return sum(
        path.read_bytes().count(b"\n")
        for path in output.with_name(f"{output.name}.penstock").glob("rows-*")
    )


@pytest.mark.parametrize("seed", range(5))
def test_a_killed_job_goes_on_where_it_was(tmp_path, whole, seed):
    output = tmp_path / "out.jsonl"
    fatal = random.Random(seed).randint(1, len(whole) - 20)
    with subprocess.Popen(command(output), stderr=subprocess.DEVNULL) as job:
        while journaled(output) < fatal and job.poll() is None:
            time.sleep(0.002)
        job.kill()
    assert job.returncode == -signal.SIGKILL
    assert not output.exists()
    done_before = journaled(output)
    assert done_before >= fatal

    resumed = subprocess.run(
        command(output, together=5), capture_output=True, text=True, timeout=300, check=True
    )
    assert f"{done_before} from an earlier run" in resumed.stderr
    assert settled(output) == whole


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    output = tmp_path_factory.mktemp("whole") / "out.jsonl"
    subprocess.run(command(output), capture_output=True, timeout=300, check=True)
    return settled(output)
