"""Jobs whose process is ended by SIGKILL, before a system call that changes a file, and started
again.

The simulated engine is what makes the output a known one. Row errors are among it; so are rows with
equal requests.
"""

import json
import random
import signal
import subprocess
import sys

import pyarrow.parquet as pq
import pytest

pytestmark = pytest.mark.slow

DRIVER = """
import os, signal, sys
calls, fatal = 0, int(sys.argv[1])
def deadly(real):
    def call(*args, **kwargs):
        global calls
        calls += 1
        if calls == fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)
    return call
for name in ("write", "fsync", "replace", "unlink", "link", "mkdir", "rmdir"):
    setattr(os, name, deadly(getattr(os, name)))
import penstock
from penstock.batch.write import sinks
sinks.PART_ROWS = 40
penstock.run(*sys.argv[2:4], **{"model": "simulated", "engine_kwargs": json.loads(sys.argv[4]),
             "prompt": "{text}", "progress": False, **json.loads(sys.argv[5])})
print(calls)
""".replace("import os,", "import json, os,")
ENGINE = {"max_num_seqs": 8, "error_rate": 0.1}


def drive(fatal, source, output, engine=ENGINE, **options):
    """Run the job; die before call number `fatal`. Returns the number of calls, or None if it
    died.
    """
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            DRIVER,
            str(fatal),
            source,
            output,
            json.dumps(engine),
            json.dumps(options),
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )
    if done.returncode == -signal.SIGKILL:
        return None
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def settled(path, *, in_order=True):
    """The rows of an output without what differs between two runs by right."""
    if path.suffix == ".jsonl":
        rows = [json.loads(line) for line in path.read_text().splitlines()]
    else:
        rows = pq.read_table(path).to_pylist()
    for row in rows:
        del row["latency_ms"], row["attempts"]
    return rows if in_order else sorted(rows, key=lambda row: row["id"])


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("killed") / "in.jsonl"
    path.write_text(
        "".join(json.dumps({"id": n, "text": f"text {n % 250}"}) + "\n" for n in range(300))
    )
    return path


@pytest.fixture(scope="module")
def uninterrupted(source):
    """The rows of a job that was not killed, and how many calls it made."""
    calls = drive(0, str(source), str(source.with_name("whole.jsonl")))
    return settled(source.with_name("whole.jsonl")), calls


@pytest.mark.parametrize("seed", range(5))
def test_killed_at_five_random_moments(source, uninterrupted, tmp_path, seed):
    expected, calls = uninterrupted
    draw = random.Random(seed)
    output = tmp_path / "out.jsonl"
    deaths = [drive(draw.randint(1, calls), str(source), str(output)) for _ in range(5)]
    assert deaths[0] is None
    drive(0, str(source), str(output))
    assert settled(output) == expected


@pytest.mark.parametrize("share", [0.2, 0.6, 0.95])
@pytest.mark.parametrize(
    ("name", "order"), [("out.parquet", "input"), ("out.jsonl", "done"), ("out/", "input")]
)
def test_killed_with_other_outputs(source, uninterrupted, tmp_path, name, order, share):
    expected, calls = uninterrupted
    output = f"{tmp_path}/{name}"
    drive(int(share * calls), str(source), output, order=order)
    drive(0, str(source), output, order=order)
    assert settled(tmp_path / name, in_order=False) == expected


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("order", ["input", "done"])
def test_killed_while_failed_rows_are_retried(source, uninterrupted, tmp_path, seed, order):
    expected, _ = uninterrupted
    draw = random.Random(seed)
    output = tmp_path / "out.jsonl"
    drive(0, str(source), str(output), order=order)
    for _ in range(4):
        drive(draw.randint(1, 20), str(source), str(output), order=order, retry_failed=True)
    # What failed fails again: the simulated engine draws its faults from the prompt.
    drive(0, str(source), str(output), order=order)
    assert settled(output, in_order=False) == expected


DECISIONS = {
    "decide": [
        {"name": "team", "instructions": "Which?", "options": ["billing", "shipping"]},
        {"name": "anger", "instructions": "How angry?", "low": 1, "high": 5},
    ],
    "filter": "Is it?",
    "threshold": 0.4,
}


@pytest.mark.parametrize("name", ["out.jsonl", "out.parquet"])
@pytest.mark.parametrize("seed", range(2))
def test_killed_while_it_decides(source, tmp_path, name, seed):
    whole, output = tmp_path / f"whole-{name}", tmp_path / name
    calls = drive(0, str(source), str(whole), **DECISIONS)
    draw = random.Random(seed)
    deaths = [
        drive(draw.randint(1, calls // 2), str(source), str(output), **DECISIONS) for _ in "abc"
    ]
    assert deaths[0] is None
    drive(0, str(source), str(output), **DECISIONS)
    assert settled(output) == settled(whole)
    assert 0 < len(settled(output)) < 300


CASCADE = {
    **DECISIONS,
    "model": ["simulated", "simulated"],
    "engine_kwargs": [{"seed": 1}, {"seed": 2}],
    "target_accuracy": 0.2,
}


@pytest.mark.parametrize("seed", range(2))
def test_killed_in_a_cascade(source, tmp_path, seed):
    whole, output = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    calls = drive(0, str(source), str(whole), **CASCADE)
    draw = random.Random(seed)
    deaths = [
        drive(draw.randint(1, calls // 2), str(source), str(output), **CASCADE) for _ in "abc"
    ]
    assert deaths[0] is None
    drive(0, str(source), str(output), **CASCADE)
    assert settled(output) == settled(whole)


@pytest.mark.parametrize("first", [0, 10])
@pytest.mark.parametrize("seed", range(3))
def test_killed_while_a_grown_input_is_taken(source, uninterrupted, tmp_path, seed, first):
    """Only new rows run, whenever it was killed: the others keep the times that they had. The new
    ones come at the end, or there and before the `first` old one.
    """
    expected, calls = uninterrupted
    grown, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    given = source.read_text().splitlines(keepends=True)
    options = {"incremental": True, "key": "id"}
    grown.write_text("".join(given[first:150]))
    drive(0, str(grown), str(output), **options)
    before = {row["id"]: row for row in map(json.loads, output.read_text().splitlines())}
    grown.write_text("".join(given))
    draw = random.Random(seed)
    for _ in range(4):
        drive(draw.randint(1, calls), str(grown), str(output), **options)
    drive(0, str(grown), str(output), **options)
    for row in map(json.loads, output.read_text().splitlines()):
        assert row == before.get(row["id"], row)
    assert settled(output) == expected
