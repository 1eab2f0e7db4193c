"""Jobs whose failed rows are run again, and no others."""

import json

import pytest

from jobs import ask, interrupted, lines
from penstock.batch.write.text import csv_to_jsonl, dicts_of
from penstock.errors import (
    EngineError,
    EngineTimeoutError,
    OutputError,
)

pytestmark = pytest.mark.usefixtures("small_parts")


@pytest.mark.parametrize("order", ["input", "done"])
@pytest.mark.parametrize("name", ["out.jsonl", "out.parquet", "out.csv", "out/"])
async def test_retry_failed_runs_the_error_rows_alone(source, tmp_path, make_engine, name, order):
    output = f"{tmp_path}/{name}"
    failing = {f"text {n}" for n in (0, 3, 4, 77, 150, 299)}
    engine = make_engine(
        lambda text: EngineTimeoutError("late") if text in failing else text.upper()
    )
    first = await ask(source, output, engine, order=order)
    assert first.counts.errors == {"engine_timeout": 6}
    for left in ({"text 3", "text 150"}, {"text 150"}, set()):
        engine = make_engine(
            lambda text, left=left: EngineError("no") if text in left else text.upper()
        )
        result = await ask(source, output, engine, order=order, retry_failed=True)
        assert set(engine.asked) == failing
        assert result.counts.failed == len(left)
        failing = left
        found = list(result.rows())
        if order == "done":
            found.sort(key=lambda row: int(row["id"]))
        assert [int(row["id"]) for row in found] == list(range(300))
        assert [row["response"] or None for row in found] == [
            None if f"text {n}" in left else f"TEXT {n}" for n in range(300)
        ]
    engine = make_engine()
    assert (await ask(source, output, engine, order=order, retry_failed=True)).already_complete
    assert engine.starts == 0


@pytest.mark.parametrize("order", ["input", "done"])
async def test_retry_failed_of_an_interrupted_job(source, tmp_path, make_engine, order):
    output = tmp_path / "out.jsonl"
    bad = make_engine(lambda text: EngineError("no") if text.endswith("5") else text.upper())
    await interrupted(source, output, bad, 170, order=order)
    engine = make_engine()
    await interrupted(source, output, engine, 20, order=order, retry_failed=True)
    again = make_engine()
    result = await ask(source, output, again, order=order)
    assert result.counts.ok == 300
    assert sorted(row["id"] for row in result.rows()) == list(range(300))
    if order == "input":
        assert [row["response"] for row in result.rows()] == [f"TEXT {n}" for n in range(300)]


@pytest.mark.parametrize("order", ["input", "done"])
async def test_a_retry_of_nothing_but_failures_goes_on_too(source, tmp_path, make_engine, order):
    output = tmp_path / "out.jsonl"
    options = {"order": order, "dead_letter": tmp_path / "failed.jsonl"}
    await ask(source, output, make_engine(lambda text: EngineError("no")), **options)
    assert output.read_bytes() == b""
    await interrupted(source, output, make_engine(), 100, retry_failed=True, **options)
    result = await ask(source, output, make_engine(), **options)
    assert (result.counts.ok, len(lines(output)), lines(tmp_path / "failed.jsonl")) == (
        300,
        300,
        [],
    )


async def test_done_order_keeps_old_rows_where_they_were(source, tmp_path, make_engine):
    output = tmp_path / "out.jsonl"
    bad = make_engine(lambda text: EngineError("no") if text == "text 9" else text.upper())
    await ask(source, output, bad, order="done")
    before = [row["id"] for row in lines(output) if row["id"] != 9]
    await ask(source, output, make_engine(), order="done", retry_failed=True)
    assert [row["id"] for row in lines(output)] == [*before, 9]


async def test_an_edited_output_is_not_retried(source, tmp_path, make_engine):
    output = tmp_path / "out.jsonl"
    bad = make_engine(lambda text: EngineError("no") if text == "text 9" else text.upper())
    await ask(source, output, bad)
    whole = output.read_bytes()
    output.write_bytes(whole.split(b"\n", 1)[1])
    with pytest.raises(OutputError, match="was changed since"):
        await ask(source, output, make_engine(), retry_failed=True)


async def test_a_csv_with_odd_cells_keeps_its_rows(tmp_path, make_engine):
    keys = {f"key {number}": number for number in range(1001)}
    texts = [f"row {number}{end}" for number, end in enumerate(["", "\r", "\n", "\r\n", ',"'])]
    source = [{"text": text, "o": keys} for text in texts]
    bad = make_engine(lambda text: EngineError("no") if text == "row 0" else text.upper())
    await ask(iter(source), tmp_path / "out.csv", bad)
    await ask(iter(source), tmp_path / "out.csv", make_engine(), retry_failed=True)
    with (tmp_path / "out.csv").open(newline="") as file:
        found = list(dicts_of(file))
    assert list(found[0])[:3] == ["text", "o", "response"]
    assert [row["response"] for row in found] == [text.upper() for text in texts]
    assert [json.loads(row["o"]) for row in found] == [keys] * 5


def test_rows_that_a_csv_lacks_are_not_made_up(tmp_path):
    (tmp_path / "out.csv").write_bytes(b"a,b\n1,x\r\n2,y\rz\n")
    with pytest.raises(OutputError, match="3 rows where the job wrote 2"):
        csv_to_jsonl(tmp_path / "out.csv", tmp_path / "base.jsonl", 2)
