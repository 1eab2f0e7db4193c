"""Jobs whose input has only grown at its end: they go on after the rows that are done."""

import gzip
import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import ask, interrupted, lines, numbered, settled
from penstock.batch.job.keys import FILE, RowKeys
from penstock.errors import EngineError, InputError

pytestmark = pytest.mark.usefixtures("small_parts")
INCREMENTAL: dict[str, Any] = {"incremental": True, "key": "id"}

LINE, LAST = '{"id": 1, "text": "a"}', '{"id": 2, "text": "a"}'


def text_of(rows, form):
    if form == "csv":
        return "id,text\n" + "".join(f'{row["id"]},"{row["text"]}"\n' for row in rows)
    return "".join(json.dumps(row) + "\n" for row in rows)


def one_file(form):
    def write(folder, rows):
        path = folder / f"in.{form}"
        path.write_text(text_of(rows, form))
        return path

    return write


def files(form):
    """A folder with a file for 150 rows each: what is new comes in new files."""

    def write(folder, rows):
        path = folder / "in"
        path.mkdir(exist_ok=True)
        for start in range(0, len(rows), 150):
            some, file = rows[start : start + 150], path / f"{start:05}.{form}"
            if form == "parquet":
                pq.write_table(pa.Table.from_pylist(some), file)
            elif form.endswith(".gz"):
                file.write_bytes(gzip.compress(text_of(some, "jsonl").encode(), mtime=0))
            else:
                file.write_text(text_of(some, form))
        return path

    return write


def generation(output):
    state = output.with_name(f"{output.name}.penstock")
    return json.loads((state / "manifest.json").read_text())["generation"]


def fails(text):
    return EngineError("no luck") if text.endswith("5") else text.upper()


def in_order(result):
    return sorted(settled(result.rows()), key=lambda row: int(row["id"]))


@pytest.mark.parametrize(
    ("write", "name", "options"),
    [
        (one_file("jsonl"), "out.jsonl", {}),
        (one_file("jsonl"), "out.parquet", {"order": "done"}),
        (one_file("jsonl"), "out", {"dead_letter": "failed"}),
        (one_file("csv"), "out.csv", {"dead_letter": "failed"}),
        (one_file("csv"), "out.parquet", {}),
        (files("jsonl"), "out.csv", {"order": "done"}),
        (files("csv"), "out.jsonl", {"dead_letter": "failed"}),
        (files("parquet"), "out.parquet", {"dead_letter": "failed"}),
        (files("jsonl.gz"), "out.jsonl", {"on_error": "skip"}),
    ],
)
async def test_a_grown_input_goes_on(tmp_path, make_engine, write, name, options):
    async def run(folder, engine, source, **more):
        folder.mkdir(exist_ok=True)
        given = {**options, **more}
        if "dead_letter" in given:
            given["dead_letter"] = folder / "failed.jsonl"
        output = folder / name
        if not output.suffix:
            output.mkdir(exist_ok=True)
        result = await ask(source, output, engine, max_attempts=1, **given)
        failed = folder / "failed.jsonl"
        return result, settled(lines(failed)) if failed.exists() else None

    ours = tmp_path / "ours"
    for count, kept in ((300, 0), (450, 300), (460, 450)):
        engine = make_engine(fails)
        source = write(tmp_path, numbered(count))
        result, letters = await run(ours, engine, source, **INCREMENTAL)
        assert sorted(engine.asked) == sorted(f"text {number}" for number in range(kept, count))
        assert (result.counts.rows, result.counts.kept) == (count, kept)
        assert result.counts.failed == count // 10
        fresh, expected = await run(tmp_path / f"fresh-{count}", make_engine(fails), source)
        assert in_order(result) == in_order(fresh)
        assert list(next(iter(result.rows()))) == list(next(iter(fresh.rows())))
        assert letters == expected
    assert generation(ours / name) == 0
    again = make_engine()
    result, _ = await run(ours, again, source, **INCREMENTAL)
    assert (result.already_complete, again.asked) == (True, [])


def first_changes(folder, rows):
    rows[0] = {**rows[0], "text": "new"}


def one_is_gone(folder, rows):
    del rows[0]


def a_part_is_gone(folder, rows):
    next(folder.glob("*.penstock/part-*")).unlink()


def a_part_is_damaged(folder, rows):
    part = next(folder.glob("*.penstock/part-*"))
    part.write_bytes(part.read_bytes().replace(b"TEXT", b"TEXX", 1))


def the_keys_are_damaged(folder, rows):
    keys = next(folder.glob(f"*.penstock/{FILE}"))
    keys.write_bytes(keys.read_bytes()[:-1] + b"?")


@pytest.mark.parametrize(
    ("change", "more", "asked"),
    [
        (first_changes, {}, ["new", "text 300"]),
        (one_is_gone, {}, ["text 300"]),
        (a_part_is_gone, {}, ["text 300"]),
        (a_part_is_damaged, {}, ["text 300"]),
        (the_keys_are_damaged, {}, ["text 300"]),
        (lambda *_: None, {"order": "done"}, ["text 300"]),
        (lambda *_: None, {"on_error": {"*": "skip"}}, ["text 300"]),
        (lambda *_: None, {"limit": 200}, []),
    ],
)
async def test_what_changes_more_is_compared_row_by_row(
    source, tmp_path, make_engine, change, more, asked
):
    output, rows = tmp_path / "out.jsonl", numbered(301)
    await ask(source, output, make_engine(fails), max_attempts=1, **INCREMENTAL)
    change(tmp_path, rows)
    source.write_text(text_of(rows, "jsonl"))
    engine = make_engine(fails)
    result = await ask(source, output, engine, max_attempts=1, **INCREMENTAL, **more)
    assert (engine.asked, generation(output)) == (asked, 1)
    assert result.counts.kept == result.counts.rows - len(asked)
    fresh = await ask(source, tmp_path / "fresh.jsonl", make_engine(fails), max_attempts=1, **more)
    assert in_order(result) == in_order(fresh)


@pytest.mark.parametrize(
    ("form", "before", "after"),
    [
        ("jsonl", f"{LINE}\n{LAST}", f"{LINE}\n{LAST}{LINE}\n"),
        ("csv", 'id,text\n1,a\n2,"b\n', 'id,text\n1,a\n2,"b\nc"\n'),
        ("csv", "id,text\n1,a", "id,text\n1,ab\n"),
        ("jsonl", f"{LINE}\n", f'{LINE}\n{{"id": 2, "new": 1}}\n'),
    ],
)
async def test_a_last_row_that_goes_on_is_another_row(tmp_path, make_engine, form, before, after):
    source, output = tmp_path / f"in.{form}", tmp_path / "out.jsonl"
    source.write_text(before)
    await ask(source, output, make_engine(), **INCREMENTAL)
    source.write_text(after)
    result = await ask(source, output, make_engine(), **INCREMENTAL)
    fresh = await ask(source, tmp_path / "fresh.jsonl", make_engine(), max_attempts=1)
    assert list(map(list, result.rows())) == list(map(list, fresh.rows()))
    assert settled(result.rows()) == settled(fresh.rows())
    assert generation(output) == 1


async def test_a_limit_that_is_raised_goes_on(source, tmp_path, make_engine):
    output = tmp_path / "out.jsonl"
    for limit, kept in ((50, 0), (90, 50), (None, 90)):
        engine = make_engine()
        result = await ask(source, output, engine, limit=limit, **INCREMENTAL)
        assert engine.asked == [f"text {number}" for number in range(kept, limit or 300)]
        assert result.counts.kept == kept
    assert generation(output) == 0


async def test_a_new_row_with_an_old_key_is_refused(source, tmp_path, make_engine):
    output = tmp_path / "out.jsonl"
    await ask(source, output, make_engine(), **INCREMENTAL)
    source.write_text(text_of([*numbered(301), {"id": 7, "text": "again"}], "jsonl"))
    engine = make_engine()
    with pytest.raises(InputError, match=r"rows 7 and 301 have the same key: .* is 7 in both"):
        await ask(source, output, engine, **INCREMENTAL)
    assert engine.starts == 0
    source.write_text(text_of(numbered(301), "jsonl"))
    assert (await ask(source, output, engine, **INCREMENTAL)).counts.kept == 300


async def test_rows_that_come_between_the_readings(source, tmp_path, make_engine, monkeypatch):
    save = RowKeys.save

    def grow(keys, folder):
        save(keys, folder)
        source.write_text(text_of(numbered(3000), "jsonl"))

    monkeypatch.setattr(RowKeys, "save", grow)
    with pytest.raises(InputError, match="was changed while it was read"):
        await ask(source, tmp_path / "out.jsonl", make_engine(), **INCREMENTAL)


async def test_rows_that_cannot_be_read_have_no_key(tmp_path, make_engine):
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    half = r'{"id": "\ud83d", "text": "a"}'
    source.write_text(f"{LINE}\n{half}\n{half}\n")
    engine = make_engine()
    result = await ask(source, output, engine, **INCREMENTAL)
    assert (engine.asked, result.counts.errors) == (["a"], {"input_error": 2})
    assert [row["id"] for row in result.rows()] == [1, "\ufffd", "\ufffd"]
    source.write_text(f"{half}\n{LINE}\n{half}\n")
    result = await ask(source, output, engine, **INCREMENTAL)
    assert (engine.asked, result.counts.kept) == (["a"], 1)
    assert [row["text"] for row in result.rows()] == ["a"] * 3


async def test_a_run_after_the_old_rows_is_interrupted(source, tmp_path, make_engine):
    output = tmp_path / "out.jsonl"
    await ask(source, output, make_engine(), **INCREMENTAL)
    source.write_text(text_of(numbered(400), "jsonl"))
    first = make_engine()
    await interrupted(source, output, first, 60, **INCREMENTAL)
    second = make_engine()
    result = await ask(source, output, second, **INCREMENTAL)
    assert set(first.asked + second.asked) == {f"text {number}" for number in range(300, 400)}
    assert result.counts.resumed == 400 - len(second.asked)
    # What was done is found again when the input changes in another way.
    source.write_text(text_of(numbered(401)[1:], "jsonl"))
    third = make_engine()
    result = await ask(source, output, third, **INCREMENTAL)
    assert (third.asked, result.counts.kept) == (["text 400"], 399)
    fresh = await ask(source, tmp_path / "fresh.jsonl", make_engine())
    assert settled(result.rows()) == settled(fresh.rows())


async def test_kept_failures_follow_the_on_error_of_the_run(tmp_path, make_engine):
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    for count, on_error in ((20, "keep"), (30, "skip"), (40, "keep"), (50, {"*": "skip"})):
        source.write_text(text_of(numbered(count), "jsonl"))
        engine = make_engine(fails)
        options = {**INCREMENTAL, "max_attempts": 1, "on_error": on_error}
        result = await ask(source, output, engine, **options)
        assert len(engine.asked) == (count if count == 20 else 10)
        left = count if on_error == "keep" else count - count // 10
        assert (result.counts.failed, len(lines(output))) == (count // 10, left)
