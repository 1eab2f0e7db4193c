"""Jobs whose input has changed since they ran."""

import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import penstock
from jobs import ask, interrupted, lines, numbered, settled
from penstock.batch import Processor, ProcessorConfig, StatefulStage
from penstock.batch.job.forecast import described
from penstock.batch.write import journal
from penstock.batch.write.state import State
from penstock.errors import ConfigError, EngineError, InputError, JobMismatchError, OutputError

pytestmark = pytest.mark.usefixtures("small_parts")
INCREMENTAL: dict[str, Any] = {"incremental": True, "key": "id"}


def write(path, rows):
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def changed(rows):
    """Some rows are gone, some new, some ask for something else, one has another place."""
    rows = [dict(row) for row in rows if row["id"] % 50 != 3]
    rows[20]["text"] = "another text"
    rows.insert(5, rows.pop(100))
    return [*rows, *({"id": number, "text": f"text {number}"} for number in range(1000, 1010))]


@pytest.mark.parametrize("order", ["input", "done"])
@pytest.mark.parametrize("name", ["jsonl", "parquet", "csv"])
async def test_only_new_and_changed_rows_run(tmp_path, make_engine, name, order):
    source = write(tmp_path / f"in.{'parquet' if name == 'parquet' else 'jsonl'}", numbered(300))
    output = tmp_path / f"out.{name}"
    await ask(source, output, make_engine(), order=order, **INCREMENTAL)
    write(source, changed(numbered(300)))
    engine = make_engine()
    result = await ask(source, output, engine, order=order, **INCREMENTAL)
    assert sorted(engine.asked) == ["another text", *(f"text {n}" for n in range(1000, 1010))]
    assert (result.counts.rows, result.counts.kept) == (304, 293)
    fresh = await ask(source, tmp_path / f"fresh.{name}", make_engine(), order=order)
    found, expected = settled(result.rows()), settled(fresh.rows())
    if order == "done":
        found.sort(key=lambda row: int(row["id"]))
        expected.sort(key=lambda row: int(row["id"]))
    assert found == expected
    again = make_engine()
    assert (await ask(source, output, again, order=order, **INCREMENTAL)).already_complete
    assert again.asked == []


async def test_a_column_that_is_not_asked_about_changes_without_a_run(tmp_path, make_engine):
    source = write(tmp_path / "in.jsonl", numbered(3))
    await ask(source, tmp_path / "out.jsonl", make_engine(), **INCREMENTAL)
    before = lines(tmp_path / "out.jsonl")
    write(source, [{**row, "note": "new"} for row in numbered(3)])
    engine = make_engine()
    await ask(source, tmp_path / "out.jsonl", engine, **INCREMENTAL)
    assert engine.asked == []
    after = lines(tmp_path / "out.jsonl")
    assert [row.pop("note") for row in after] == ["new"] * 3
    assert after == before  # the times of the earlier answers among it


async def test_rows_that_swap_keys_run_again(tmp_path, make_engine):
    source = write(tmp_path / "in.jsonl", [{"id": 1, "text": "a"}, {"id": 2, "text": "b"}])
    await ask(source, tmp_path / "out.jsonl", make_engine(), **INCREMENTAL)
    write(source, [{"id": 2, "text": "a"}, {"id": 1, "text": "b"}, {"id": "1", "text": "a"}])
    engine = make_engine()
    result = await ask(source, tmp_path / "out.jsonl", engine, **INCREMENTAL)
    assert (sorted(engine.asked), result.counts.kept) == (["a", "b"], 0)


async def test_answers_are_kept_over_several_inputs(tmp_path, make_engine):
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    for count in (50, 130, 60, 131):
        write(source, numbered(count))
        engine = make_engine()
        result = await ask(source, output, engine, **INCREMENTAL)
        assert result.counts.rows == count
        assert [row["id"] for row in lines(output)] == list(range(count))
    assert result.counts.kept == 60  # what left the output has left the answers too
    generations = {path.name.split("-")[1] for path in tmp_path.glob("*.penstock/kept-*")}
    assert generations == {"1"}


async def test_an_interrupted_run_goes_on_also_with_a_third_input(tmp_path, make_engine):
    source, output = write(tmp_path / "in.jsonl", numbered(100)), tmp_path / "out.jsonl"
    await ask(source, output, make_engine(), **INCREMENTAL)
    write(source, numbered(200))
    first = make_engine()
    await interrupted(source, output, first, 60, **INCREMENTAL)
    second = make_engine()
    await interrupted(source, output, second, 20, **INCREMENTAL)
    write(source, numbered(210))
    third = make_engine()
    result = await ask(source, output, third, **INCREMENTAL)
    asked = [*first.asked, *second.asked, *third.asked]
    assert set(asked) == {f"text {number}" for number in range(100, 210)}
    assert len(asked) <= 110 + first.most + second.most
    assert result.counts.kept + len(third.asked) == 210
    fresh = await ask(source, tmp_path / "fresh.jsonl", make_engine())
    assert settled(result.rows()) == settled(fresh.rows())


@pytest.mark.parametrize("seen", [False, True])
async def test_a_kill_before_the_rows_are_shelved_loses_no_answer(
    tmp_path, make_engine, monkeypatch, seen
):
    class Killed(BaseException):
        pass

    def kill(path):
        raise Killed

    complete = State._complete

    source, output = write(tmp_path / "in.jsonl", numbered(20)), tmp_path / "out.jsonl"
    with monkeypatch.context() as patch:

        def end(self):
            patch.setattr(journal, "_shelve", kill)
            complete(self)

        # A run that was killed between the record of a part and this leaves such files too.
        patch.setattr(journal, "_shelve", lambda path: None)
        patch.setattr(State, "_complete", end)
        with pytest.raises(Killed):
            await ask(source, output, make_engine(), **INCREMENTAL)
    if seen:  # the run after the kill, with the same input
        assert (await ask(source, output, make_engine(), **INCREMENTAL)).already_complete
    write(source, numbered(21))
    engine = make_engine()
    result = await ask(source, output, engine, **INCREMENTAL)
    assert (engine.asked, result.counts.kept) == (["text 20"], 20)


async def test_a_changed_output_is_refused_before_any_row_runs(tmp_path, make_engine):
    source, output = write(tmp_path / "in.jsonl", numbered(3)), tmp_path / "out.jsonl"
    await ask(source, output, make_engine(), **INCREMENTAL)
    output.write_text("edited")
    write(source, numbered(4))
    engine = make_engine()
    with pytest.raises(OutputError, match="was changed"):
        await ask(source, output, engine, **INCREMENTAL)
    assert engine.asked == []
    output.unlink()
    assert (await ask(source, output, engine, **INCREMENTAL)).counts.kept == 3


async def test_a_retry_that_was_interrupted_goes_on(tmp_path, make_engine):
    source, output = write(tmp_path / "in.jsonl", numbered(100)), tmp_path / "out.jsonl"
    options: dict[str, Any] = {**INCREMENTAL, "max_attempts": 1}
    await ask(source, output, make_engine(lambda text: EngineError("no luck")), **options)
    await interrupted(source, output, make_engine(), 40, retry_failed=True, **options)
    result = await ask(source, output, make_engine(), retry_failed=True, **options)
    assert result.counts.resumed > 0


async def test_failed_rows_are_kept_unless_they_are_retried(tmp_path, make_engine):
    def fails(text):
        return EngineError("no luck") if text.endswith("5") else text.upper()

    source, output = write(tmp_path / "in.jsonl", numbered(20)), tmp_path / "out.jsonl"
    options = {**INCREMENTAL, "max_attempts": 1}
    await ask(source, output, make_engine(fails), **options)
    write(source, numbered(21))
    engine = make_engine()
    result = await ask(source, output, engine, **options)
    assert (engine.asked, result.counts.failed) == (["text 20"], 2)
    engine = make_engine()
    result = await ask(source, output, engine, retry_failed=True, **options)
    assert (sorted(engine.asked), result.counts.failed) == (["text 15", "text 5"], 0)
    engine = make_engine()
    result = await ask(source, output, engine, retry_failed=True, **options)
    assert result.already_complete


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"id": 1}, {"id": None}], "row 1 has no key: its column 'id' is null"),
        ([{"id": 1}, {"other": 2}], "row 1 has no key: its column 'id' is null"),
        ([{"id": ""}], "row 0 has no key: its column 'id' is empty"),
        ([{"id": "a"}, {"id": "b"}, {"id": "a"}], "rows 0 and 2 have the same key"),
        ([{"id": {"a": 1, "b": 2}}, {"id": {"b": 2, "a": 1}}], "rows 0 and 1 have the same key"),
    ],
)
async def test_keys_that_tell_nothing_apart_are_refused(tmp_path, make_engine, rows, words):
    source = write(tmp_path / "in.jsonl", [{"text": "a", **row} for row in rows])
    engine = make_engine()
    with pytest.raises(InputError, match=words):
        await ask(source, tmp_path / "out.jsonl", engine, **INCREMENTAL)
    assert engine.starts == 0
    assert not (tmp_path / "out.jsonl.penstock").exists()


async def test_other_requests_say_what_would_be_computed(tmp_path, make_engine):
    source, output = write(tmp_path / "in.jsonl", numbered(30)), tmp_path / "out.jsonl"
    await ask(source, output, make_engine(), **INCREMENTAL)
    write(source, numbered(31))
    with pytest.raises(JobMismatchError, match="all 30 rows would be computed again") as refused:
        await ask(source, output, make_engine(), prompt="Sort {text}", **INCREMENTAL)
    assert set(refused.value.differences) == {"prompt"}
    engine = make_engine()
    result = await ask(source, output, engine, prompt="Sort {text}", fresh=True, **INCREMENTAL)
    assert (len(engine.asked), result.counts.kept) == (31, 0)


async def test_a_job_that_was_not_incremental_is_not_taken_further(tmp_path, make_engine):
    source, output = write(tmp_path / "in.jsonl", numbered(3)), tmp_path / "out.jsonl"
    await ask(source, output, make_engine())
    with pytest.raises(JobMismatchError, match="key"):
        await ask(source, output, make_engine(), **INCREMENTAL)


async def test_a_damaged_answer_is_computed_again(tmp_path, make_engine):
    source, output = write(tmp_path / "in.jsonl", numbered(100)), tmp_path / "out.jsonl"
    await ask(source, output, make_engine(), **INCREMENTAL)
    kept = sorted(tmp_path.glob("*.penstock/kept-*"))[0]
    kept.write_bytes(kept.read_bytes().replace(b"TEXT 7", b"TEXT 8", 1))
    write(source, numbered(101)[1:])
    engine = make_engine()
    result = await ask(source, output, engine, **INCREMENTAL)
    assert (sorted(engine.asked), result.counts.kept) == (["text 100", "text 7"], 98)
    assert lines(output)[6]["response"] == "TEXT 7"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"incremental": True}, "incremental: needs a key"),
        ({"key": "id"}, "key: is for an incremental job"),
        ({"incremental": True, "key": "idd"}, "the data has no column 'idd'.*'id'"),
        ({"incremental": True, "key": 3}, "key: must be text"),
    ],
)
async def test_options_that_do_not_fit_are_refused(source, tmp_path, make_engine, options, words):
    with pytest.raises(ConfigError, match=words):
        await ask(
            write(tmp_path / "in.csv.jsonl", numbered(2)),
            tmp_path / "out.jsonl",
            make_engine(),
            **options,
        )


async def test_rows_that_can_be_read_once_are_refused(tmp_path, make_engine):
    with pytest.raises(ConfigError, match="read twice"):
        await ask(iter(numbered(2)), tmp_path / "out.jsonl", make_engine(), **INCREMENTAL)
    with pytest.raises(ConfigError, match="needs an output"):
        await ask(iter(numbered(2)), None, make_engine(), **INCREMENTAL)


async def test_dead_letters_follow_the_input(tmp_path, make_engine):
    def fails(text):
        return EngineError("no luck") if text.endswith("5") else text.upper()

    source, output = write(tmp_path / "in.jsonl", numbered(20)), tmp_path / "out.jsonl"
    letters = tmp_path / "failed.jsonl"
    options = {**INCREMENTAL, "max_attempts": 1, "dead_letter": letters}
    await ask(source, output, make_engine(fails), **options)
    assert [row["id"] for row in lines(letters)] == [5, 15]
    write(source, [row for row in numbered(30) if row["id"] != 5])
    engine = make_engine(fails)
    result = await ask(source, output, engine, **options)
    assert (len(engine.asked), result.counts.kept) == (10, 19)
    assert [row["id"] for row in lines(letters)] == [15, 25]
    assert len(lines(output)) == 27


async def test_an_output_at_a_url(tmp_path, make_engine, monkeypatch):
    monkeypatch.setenv("PENSTOCK_STATE_DIR", str(tmp_path / "state"))
    source, output = write(tmp_path / "in.jsonl", numbered(20)), f"file://{tmp_path}/out.jsonl"
    await ask(source, output, make_engine(), **INCREMENTAL)
    write(source, numbered(21))
    engine = make_engine()
    await ask(source, output, engine, **INCREMENTAL)
    assert engine.asked == ["text 20"]
    assert len(lines(tmp_path / "out.jsonl")) == 21


class Doubling:
    """A stage that notes which rows it sees, by `seen`."""

    def __init__(self, seen):
        self.seen = seen

    async def process(self, row):
        self.seen.append(row["n"])
        return {"double": 2 * row["n"]}


async def test_a_row_of_a_processor_has_changed_with_any_column(tmp_path):
    source = tmp_path / "in.jsonl"

    async def run(seen):
        processor = Processor(
            ProcessorConfig(concurrency=2, batch_size=4),
            [StatefulStage(fn=Doubling, fn_constructor_kwargs={"seen": seen})],
            preprocess=lambda row: {"n": row["n"]},
            postprocess=lambda row: {**row, "by": "post"},
        )
        output = tmp_path / "out.jsonl"
        options: dict[str, Any] = {"processor": processor, "incremental": True, "key": "n"}
        return await penstock.arun(source, output, progress=False, **options)

    rows = [{"n": number, "note": "old"} for number in range(10)]
    write(source, rows)
    await run([])
    rows[3]["note"] = "new"
    write(source, [*rows, {"n": 10, "note": "old"}])
    seen: list[int] = []
    result = await run(seen)
    assert (sorted(seen), result.counts.kept) == ([3, 10], 9)
    assert [row["double"] for row in lines(tmp_path / "out.jsonl")] == list(range(0, 22, 2))


def state_of(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ["jsonl", "parquet"])
async def test_a_plan_says_what_would_run(tmp_path, make_engine, name):
    source = write(tmp_path / f"in.{name}", numbered(300))
    output = tmp_path / f"out.{name}"

    async def plan(**options):
        given = {"engine": make_engine(), "prompt": "{text}", "trial": 4, **INCREMENTAL, **options}
        trial = given.pop("trial")
        return await penstock.batch.Job(source, output, **given).aplan(trial=trial)

    before = await plan()
    assert (before.rows, before.kept, before.tried) == (300, 0, 4)
    await ask(source, output, make_engine(), **INCREMENTAL)
    write(source, changed(numbered(300)))
    state = state_of(tmp_path)
    engine = make_engine()
    found = await plan(engine=engine, trial=64)
    assert (found.rows, found.kept, found.tried) == (304, 293, 11)
    assert set(engine.asked) == {"another text", *(f"text {n}" for n in range(1000, 1010))}
    assert "293 have their answers already" in described(found)
    assert (await plan(fresh=True)).kept == 0
    with pytest.raises(JobMismatchError, match="all 300 rows would be computed again"):
        await plan(prompt="Say {text}")
    with pytest.raises(ConfigError, match="no column"):
        await plan(key="idd")
    assert state_of(tmp_path) == state
    await ask(source, output, make_engine(), **INCREMENTAL)
    found = await plan()
    assert (found.kept, found.tried, found.seconds) == (304, 0, None)


async def test_a_plan_of_an_interrupted_run_counts_its_rows(tmp_path, make_engine):
    source, output = write(tmp_path / "in.jsonl", numbered(300)), tmp_path / "out.jsonl"
    await interrupted(source, output, make_engine(), 120, **INCREMENTAL)
    job = penstock.batch.Job(source, output, engine=make_engine(), prompt="{text}", **INCREMENTAL)
    found = await job.aplan(trial=0)
    result = await ask(source, output, make_engine(), **INCREMENTAL)
    assert found.kept == result.counts.resumed > 0


async def test_a_plan_of_failed_rows(tmp_path, make_engine):
    def fails(text):
        return EngineError("no luck") if text == "text 7" else text

    source, output = write(tmp_path / "in.jsonl", numbered(20)), tmp_path / "out.jsonl"
    options = {**INCREMENTAL, "max_attempts": 1}
    await ask(source, output, make_engine(fails), **options)

    async def kept(**options):
        job = penstock.batch.Job(
            source, output, engine=make_engine(), prompt="{text}", **INCREMENTAL, **options
        )
        return (await job.aplan(trial=0)).kept

    assert [await kept(), await kept(retry_failed=True)] == [20, 19]
