import re
from typing import Any

import pytest

import penstock
from penstock.batch.job.result import Counts, Progress, RunResult, summary


def test_a_summary_tells_all():
    counts = Counts(
        rows=1200,
        errors={"invalid_json": 2, "engine_error": 1},
        prompt_tokens=5000,
        completion_tokens=3000,
        cached_tokens=1000,
        deduplicated=200,
        resumed=300,
        seconds=2.0,
        row_seconds=2.0,
    )
    assert summary(RunResult(counts, "out.jsonl")).splitlines() == [
        "1,200 rows, 3 failed (300 from an earlier run, 200 from an equal request)",
        "  1 × engine_error",
        "  2 × invalid_json",
        "5,000 tokens in (1,000 cached), 3,000 out, 2 s, 1,500 tokens/s",
        "Output: out.jsonl",
    ]


@pytest.mark.parametrize("form", ["jsonl", "parquet", "memory"])
def test_a_summary_tells_of_empty_prompts(tmp_path, form):
    rows = [{"a": "x", "b": None}, {"a": " \n", "b": None}, {"a": "", "b": ""}, {"a": "", "b": 0}]
    output = None if form == "memory" else tmp_path / f"out.{form}"
    options: dict[str, Any] = {"model": "simulated", "progress": False}
    result = penstock.run([*rows, {"a": ""}], output, prompt="About: {a} {b}", **options)
    assert (result.counts.blank, result.counts.failed) == (2, 1)  # the last row has no `b`
    assert "Asked like others, with all columns of the prompt empty: 2 rows" in summary(result)
    assert [row["status"] for row in result.rows()] == ["ok"] * 4 + ["error"]
    plain = penstock.run(rows, prompt="Nothing of a row", **options)
    assert plain.counts.blank == 0
    assert "empty" not in summary(plain)


def test_a_summary_tells_of_pauses():
    counts = Counts(rows=1)
    counts.pauses.note("http://there", 30, is_kept=True)
    counts.pauses.note("http://there", 3600, is_kept=False)
    assert (
        "Pauses for servers: 2, up to 1 h for http://there\nGiven up after a server's refusals: 1"
        in summary(RunResult(counts))
    )


def test_the_line_tells_of_a_pause():
    counts = Counts(rows=1, total=2)
    counts.pauses.note("http://there", 3600, is_kept=False)
    assert (
        "a pause of 1 h for http://there · 1 given up after refusals"
        in Progress(counts, shown=True)._line()
    )


def test_the_line_shows_where_the_job_is():
    progress = Progress(
        Counts(rows=50, errors={"x": 2}, completion_tokens=100, total=200), shown=True
    )
    progress._rows_before = 0
    assert re.search(
        r"50/200 rows · [\d,]+ rows/s · [\d,]+ tokens/s · [\d.]+ s left · 2 errors",
        progress._line(),
    )


async def test_progress_goes_to_standard_error_and_leaves_nothing_behind(make_engine, capsys):
    await penstock.arun([{"text": "a"}] * 10, engine=make_engine(), prompt="{text}", progress=True)
    assert capsys.readouterr().out == ""
