"""The report of a job."""

import json
import re

import pytest

from jobs import ask, interrupted, numbered
from penstock.batch import report
from penstock.batch.job.result import Counts
from penstock.batch.report import Observed, Observer, Spread, load, page
from penstock.batch.rows.row import Outcome, Row, RowError
from penstock.errors import ConfigError, EngineError
from penstock.types import Usage

HOSTILE = "<script>alert(1)</script>\"'><img src=http://evil.example/x onerror=alert(2)>\ud800\0"


def text(path):
    return path.read_text()


def observed_rows(folder):
    found = load(folder / "out.jsonl.penstock", 0)
    return found and found.rows


async def test_a_job_reports_its_rows_and_errors(tmp_path, make_engine):
    def fails(text):
        return EngineError("no <b>luck</b>") if text.endswith("7") else text.upper()

    path = tmp_path / "job.html"
    await ask(numbered(40), None, make_engine(fails), max_attempts=1, report=path)
    found = text(path)
    assert "<th>State</th><td>complete</td>" in found
    assert "40, 4 of them failed" in found
    assert "4 × engine_error" in found
    assert found.count("engine: no &lt;b&gt;luck&lt;/b&gt;") >= 3  # examples
    assert found.count("<article>") == 12 + 3
    for title in ("Rows a second", "Latency of rows", "Length of answers", "The job"):
        assert f"<h2>{title}</h2>" in found
    assert "<th>prompt</th><td>{text}</td>" in found


async def test_tokens_are_those_that_were_computed(tmp_path, make_engine):
    path = tmp_path / "job.html"
    rows = [{"text": "same"}] * 5 + numbered(3)
    result = await ask(rows, None, make_engine(), report=path)
    counts = result.counts
    assert counts.deduplicated == 4
    found = text(path)
    assert f"<th>Tokens computed, of prompts</th><td>{counts.prompt_tokens}</td>" in found
    assert f"<th>Tokens computed, of answers</th><td>{counts.completion_tokens}</td>" in found


async def test_rows_cannot_act_in_it(tmp_path, make_engine):
    path = tmp_path / "job.html"
    rows = [{"text": "a", HOSTILE[:-2]: HOSTILE[:-2]}]
    await ask(rows, None, make_engine(lambda _: HOSTILE), report=path, system=HOSTILE[:-2])
    found = text(path)
    assert found.count("&lt;script&gt;") >= 3
    assert not re.search(
        r"<(script|img|iframe|link|a |object|style[^>])", found.partition("</style>")[2]
    )
    assert found.count("<style>") == 1
    assert "default-src 'none'" in found
    assert not re.search(r"\bon\w+=", re.sub(r"<pre>.*?</pre>|<td>.*?</td>", "", found, flags=re.S))
    assert "http://" not in re.sub(r"<pre>.*?</pre>|<td>.*?</td>", "", found, flags=re.S)


async def test_it_covers_all_runs_of_a_job(tmp_path, make_engine):
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in numbered(60)))
    path, output = tmp_path / "job.html", tmp_path / "out.jsonl"
    await interrupted(source, output, make_engine(), 20, report=path)
    assert "<td>stopped; it can be resumed</td>" in text(path)
    await ask(source, output, make_engine(), report=path)
    assert observed_rows(tmp_path) == 60
    assert "60, 0 of them failed" in text(path)
    assert "Observed" not in text(path)
    path.unlink()
    await ask(source, output, make_engine(), report=path)  # complete already
    assert "Latency of rows" in text(path)
    source.write_text(source.read_text() + '{"id": 60, "text": "new"}\n')
    await ask(source, output, make_engine(), report=path, fresh=True)
    assert observed_rows(tmp_path) == 61


@pytest.mark.parametrize(
    ("report", "words"),
    [
        ("job.txt", "must be a local path ending in .html"),
        ("s3://bucket/job.html", "must be a local path"),
        ("no/such/job.html", "cannot be written: there is no directory no/such"),
        (3, "report: must be a path"),
    ],
)
async def test_a_place_that_cannot_be_is_refused(make_engine, report, words):
    engine = make_engine()
    with pytest.raises(ConfigError, match=words):
        await ask(numbered(1), None, engine, report=report)
    assert engine.starts == 0


async def test_no_report_in_the_state_of_its_job(tmp_path, make_engine, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out.jsonl.penstock").mkdir()
    for output in ("out.jsonl", tmp_path / "out.jsonl"):
        with pytest.raises(ConfigError, match="lies in, the job's state"):
            await ask(numbered(1), output, make_engine(), report="out.jsonl.penstock/part-x.html")


def test_memory_is_bounded(monkeypatch):
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    observer = Observer()
    for number in range(5000):
        now += 1.7
        kind = None if number % 3 else RowError(f"kind_{number % 7}", "engine", False, "x" * 9999)
        outcome = Outcome("y" * 9999, kind, "stop", Usage(number, 2, 0), 1, 10.0 * number)
        counts = Counts(rows=number, completion_tokens=2 * number)
        observer.note(Row(number, {"text": "z" * 9999}), outcome, counts)
    seen = observer.observed
    assert seen.rows == 5000
    assert sum(rows for rows, _ in seen.speed) == 5000
    assert sum(tokens for _, tokens in seen.speed) == 2 * 4999
    assert 120 <= len(seen.speed) <= 240
    assert len(seen.samples) == 12
    assert max(each.index for each in seen.samples) > 2500
    assert {kind: len(rows) for kind, rows in seen.examples.items()} == {
        f"kind_{number}": 3 for number in range(7)
    }
    assert len(page("t", "complete", Counts(), seen, {})) < 200_000


def test_the_quantiles_of_a_spread():
    spread = Spread()
    for value in range(1, 1001):
        spread.add(value)
    assert spread.quantile(0.5) == pytest.approx(500, rel=0.1)
    assert spread.quantile(0.99) == pytest.approx(990, rel=0.1)
    assert spread.quantile(1) == pytest.approx(1000, rel=0.1)
    assert Spread().quantile(0.5) == 0


def test_a_report_of_nothing_and_a_damaged_memory(tmp_path):
    assert "0, 0 of them failed" in page("t", "complete", Counts(), Observed(), {})
    (tmp_path / report.OBSERVED_FILE).write_text("{")
    assert load(tmp_path, 0) is None
    observer = Observer(tmp_path, 2)
    observer.save()
    assert load(tmp_path, 1) is None
    assert load(tmp_path, 2) == observer.observed
