"""A grown input, a shared cache and a report on the embedded engine."""

import pytest

import penstock
from jobs import lines
from penstock.demo import tickets_path

pytestmark = pytest.mark.slow


def settled(path):
    rows = lines(path)
    for row in rows:
        del row["attempts"], row["latency_ms"], row["usage"]["cached_tokens"]
    return rows


def test_kept_and_cached_answers_are_those_of_a_fresh_run(tmp_path):
    tickets = tickets_path().read_text().splitlines(keepends=True)
    source = tmp_path / "in.jsonl"

    def run(name, rows, **options):
        source.write_text("".join(rows))
        return penstock.run(
            source,
            tmp_path / name,
            prompt="{ticket}",
            max_tokens=5,
            deterministic=True,
            progress=False,
            **options,
        )

    shared = {"cache": tmp_path / "cache"}
    report = tmp_path / "job.html"
    run("out.jsonl", tickets[:12], incremental=True, key="id", **shared)
    grown = [*tickets[14:16], *tickets[2:12]]
    kept = run("out.jsonl", grown, incremental=True, key="id", report=report)
    cached = run("cached.parquet", grown, **shared)
    run("fresh.jsonl", grown)
    assert (kept.counts.kept, kept.counts.engine_calls) == (10, 2)
    assert (cached.counts.from_cache, cached.counts.engine_calls) == (10, 2)
    assert settled(tmp_path / "out.jsonl") == settled(tmp_path / "fresh.jsonl")
    fresh = [row["response"] for row in settled(tmp_path / "fresh.jsonl")]
    assert [row["response"] for row in cached.rows()] == fresh
    assert report.read_text().count("<article>") == 12
