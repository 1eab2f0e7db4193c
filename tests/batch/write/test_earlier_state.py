"""State that an earlier version has left, as files: this one goes on with it.

`states.json` was written by the version that stood before this test. State of a later form is added
beside it, and what is there stays, as long as `manifest.VERSION` does.
"""

from __future__ import annotations

import json
from base64 import b64encode
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import penstock
from jobs import settled
from penstock.batch.cache.database import AnswerDatabase
from penstock.batch.rows.dedupe import AnswerCache
from penstock.batch.rows.row import Outcome
from penstock.batch.rows.task_forms import ColumnVectors
from penstock.batch.write.journal import Journal
from penstock.errors import JobVersionError
from penstock.types import Sampling

STATES: dict[str, Any] = json.loads((Path(__file__).parent / "states.json").read_text())
ROWS = [{"id": number, "text": f"row {number}"} for number in range(6)]
LINES = [
    {
        "custom_id": f"c{number}",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {
            "model": "m",
            "messages": [{"role": "user", "content": f"say {number}"}],
            "max_tokens": 6,
            "temperature": 0,
        },
    }
    for number in range(6)
]


def written(folder: Path, name: str) -> dict[str, Any]:
    """The input and the state of a job; gives what it is asked with."""
    state = folder / "o.jsonl.penstock"
    state.mkdir(0o700)
    rows = LINES if name == "lines" else ROWS
    source = folder / "in.jsonl"
    source.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (state / "manifest.json").write_text(json.dumps(STATES[name]["manifest"]))
    (state / "rows-0-0.jsonl").write_text("".join(f"{row}\n" for row in STATES[name]["rows"]))
    options = {"engine": "simulated", "progress": False, **STATES[name]["options"]}
    return {"source": str(source), "output": str(folder / "o.jsonl"), **options}


def bare(row: dict[str, Any]) -> dict[str, Any]:
    """A row without the ids and times of an answer."""
    return {
        key: bare(value) if isinstance(value, dict) else value
        for key, value in row.items()
        if key not in ("id", "created", "request_id")
    }


@pytest.mark.parametrize("name", STATES)
async def test_jobs_that_an_earlier_version_began_go_on(tmp_path: Path, name: str) -> None:
    result = await penstock.arun(**written(tmp_path, name))
    assert result.counts.resumed == len(STATES[name]["rows"])
    assert result.counts.rows == 6
    fresh = await penstock.arun(**written_anew(tmp_path, name))
    same = [[bare(row) for row in settled(one.rows())] for one in (result, fresh)]
    assert same[0] == same[1]


def written_anew(folder: Path, name: str) -> dict[str, Any]:
    """As `written`, without any state."""
    other = folder / "other"
    other.mkdir()
    asked = written(other, name)
    for path in (other / "o.jsonl.penstock").iterdir():
        path.unlink()
    return asked


async def test_a_job_of_a_later_version_is_refused(tmp_path: Path) -> None:
    asked = written(tmp_path, "texts")
    manifest = tmp_path / "o.jsonl.penstock" / "manifest.json"
    later = {**STATES["texts"]["manifest"], "version": 3, "job": ["of another form"]}
    manifest.write_text(json.dumps(later))
    with pytest.raises(JobVersionError, match=r"version 3.*finish the job with the Penstock that"):
        await penstock.arun(**asked)
    assert json.loads(manifest.read_text()) == later


@pytest.mark.parametrize(
    ("kind", "parsed", "value"),
    [
        ("dense", None, [1.0, 2.0]),
        ("multi", 2, [[1.0], [2.0]]),
        ("sparse", [7, 9], {"indices": [7, 9], "values": [1.0, 2.0]}),
    ],
)
def test_vectors_are_kept_in_the_form_of_earlier_versions(
    tmp_path: Path, kind: Any, parsed: Any, value: Any
) -> None:
    numbers = np.array([1.0, 2.0], "<f4").tobytes()
    form = ColumnVectors(messages="text", sampling=Sampling(), vectors=kind)
    made = Outcome(packed=numbers, parsed=parsed)
    kept = Outcome(b64encode(numbers).decode(), parsed=parsed)
    assert made.stored() == kept

    answers = AnswerCache(tmp_path)
    shared = AnswerDatabase(tmp_path, most_bytes=1 << 20, seconds=60)
    journal = Journal(tmp_path, 0)
    journal.add(0, b"digest", made)
    journal.close()
    again = Journal(tmp_path, 0)
    again.load()
    found = [again.pending[0].outcome]
    for cache in (answers, shared):
        cache.put(b"d" * 16, made)
        answer = cache.get(b"d" * 16)
        assert answer is not None
        found.append(answer)
        cache.close()
    assert found == [kept] * 3
    for outcome in (made, *found):
        (first, *_) = form.results(outcome)
        assert (first if kind == "sparse" else np.asarray(first).tolist()) == value
