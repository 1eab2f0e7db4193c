"""Jobs that go on after an end that they did not choose."""

import asyncio
import errno
import os
import threading

import pytest

from jobs import ask, interrupted, numbered, settled
from penstock.batch.write.state import State
from penstock.errors import (
    EngineDeadError,
    EngineError,
    InputError,
    JobError,
    JobMismatchError,
    OutputError,
)

pytestmark = pytest.mark.usefixtures("small_parts")


async def test_a_complete_job_is_left_alone(source, tmp_path, make_engine):
    await ask(source, tmp_path / "out.jsonl", make_engine())
    before = (tmp_path / "out.jsonl").stat()
    engine = make_engine()
    result = await ask(source, tmp_path / "out.jsonl", engine)
    assert (result.already_complete, result.counts.rows, engine.starts) == (True, 300, 0)
    assert (tmp_path / "out.jsonl").stat() == before


async def test_what_was_answered_at_the_same_time_as_the_failure_is_kept(tmp_path, make_engine):
    texts = [row["text"] for row in numbered(6)]
    engine = make_engine(
        lambda text: EngineError("no luck") if text == texts[2] else text, concurrency=6
    )
    with pytest.raises(JobError, match="row 2 failed"):
        await ask(numbered(6), tmp_path / "out.jsonl", engine, on_error="fail", max_attempts=1)
    assert sorted(engine.asked) == texts
    engine = make_engine()
    result = await ask(numbered(6), tmp_path / "out.jsonl", engine, on_error="fail", max_attempts=1)
    assert (engine.asked, result.counts.resumed) == ([texts[2]], 5)


@pytest.mark.parametrize("order", ["input", "done"])
@pytest.mark.parametrize("name", ["out.jsonl", "out.parquet", "out.csv"])
async def test_an_interrupted_job_goes_on(source, tmp_path, make_engine, name, order):
    whole = await ask(source, tmp_path / f"whole.{name}", make_engine(), order=order)
    asked = []
    for after in (5, 90, 130):
        engine = make_engine()
        await interrupted(source, tmp_path / name, engine, after, order=order)
        asked += engine.asked
        assert not (tmp_path / name).exists()
    engine = make_engine()
    result = await ask(source, tmp_path / name, engine, order=order)
    asked += engine.asked
    again = 3 * engine.most  # at most those that were in flight are asked again
    assert len(set(asked)) == 300
    assert len(asked) <= 300 + again
    assert result.counts.resumed + len(engine.asked) == 300
    found, expected = list(result.rows()), list(whole.rows())
    if order == "done":
        found.sort(key=lambda row: int(row["id"]))
        expected.sort(key=lambda row: int(row["id"]))
    assert settled(found) == settled(expected)


async def test_streams_are_compared_as_they_come_again(tmp_path, make_engine):
    output = tmp_path / "out.jsonl"
    await interrupted(iter(numbered(200)), output, make_engine(), 150)
    other = numbered(200)
    other[3]["text"] = "changed"
    engine = make_engine()
    with pytest.raises(JobMismatchError, match="not the one this job began with"):
        await ask(iter(other), output, engine)
    with pytest.raises(JobMismatchError, match="not the one this job began with"):
        await ask(iter(numbered(20)), output, make_engine())
    result = await ask(iter(numbered(200)), output, make_engine())
    assert [row["response"] for row in result.rows()] == [f"TEXT {n}" for n in range(200)]
    assert result.counts.resumed >= 120


async def test_other_requests_of_the_same_rows_are_told(source, tmp_path, make_engine, monkeypatch):
    """Another version may make them, or images may have changed: the input has not."""
    output = tmp_path / "out.jsonl"
    await interrupted(source, output, make_engine(), 5)
    monkeypatch.setattr("penstock.batch.flow.digest_key", lambda digest: 1)
    with pytest.raises(JobMismatchError, match=r"no longer .*preprocess.* that began it.*--fresh"):
        await ask(source, output, make_engine())


@pytest.mark.parametrize("name", ["out.jsonl", "out.parquet"])
async def test_a_complete_job_knows_its_stream(tmp_path, make_engine, name):
    output = tmp_path / name
    bad = make_engine(lambda text: EngineError("no") if text == "text 9" else text.upper())
    await ask(iter(numbered(50)), output, bad, prompt="{text}")
    other = numbered(50)
    other[30]["text"] = "changed"
    for retry_failed in (False, True):
        with pytest.raises(JobMismatchError, match="its rows differ"):
            await ask(iter(other), output, make_engine(), retry_failed=retry_failed)
        with pytest.raises(JobMismatchError):
            await ask(iter(numbered(49)), output, make_engine())
        if not retry_failed:
            assert (await ask(iter(numbered(50)), output, make_engine())).already_complete


async def test_another_job_is_refused_with_what_differs(source, tmp_path, make_engine):
    output = tmp_path / "out.jsonl"
    await ask(source, output, make_engine())
    with pytest.raises(JobMismatchError) as caught:
        await ask(source, output, make_engine(), prompt="Now: {text}", max_tokens=5)
    assert caught.value.differences == {
        "prompt": ("{text}", "Now: {text}"),
        "max_tokens": (None, 5),
    }
    assert "journaled" in str(caught.value)
    source.write_text('{"text": "other"}\n')
    with pytest.raises(JobMismatchError, match="input digest"):
        await ask(source, output, make_engine())
    result = await ask(source, output, make_engine(), fresh=True)
    assert [row["response"] for row in result.rows()] == ["OTHER"]


async def test_a_job_that_did_nothing_binds_to_nothing(source, tmp_path, make_engine):
    engine = make_engine()

    async def start():
        raise EngineError("no such model")

    engine.start = start
    with pytest.raises(EngineError, match="no such model"):
        await ask(source, tmp_path / "out.jsonl", engine)
    result = await ask(source, tmp_path / "out.jsonl", make_engine(), prompt="Now: {text}")
    assert result.counts.ok == 300


async def test_what_does_not_change_results_may_change(source, tmp_path, make_engine):
    output = tmp_path / "out.jsonl"
    await interrupted(source, output, make_engine(), 50)
    result = await ask(
        source, output, make_engine(), max_attempts=7, on_error="fail", progress=None
    )
    assert result.counts.rows == 300


async def test_a_failing_row_that_ended_the_job_is_tried_again(source, tmp_path, make_engine):
    output = tmp_path / "out.jsonl"
    bad = make_engine(lambda text: EngineError("no") if text == "text 200" else text.upper())
    with pytest.raises(JobError, match="row 200"):
        await ask(source, output, bad, on_error="fail")
    engine = make_engine()
    result = await ask(source, output, engine, on_error="fail")
    assert result.counts.ok == 300
    assert result.counts.resumed >= 190
    assert [row["response"] for row in result.rows()] == [f"TEXT {n}" for n in range(300)]


async def test_a_job_whose_engine_failed_for_good_goes_on(source, tmp_path, make_engine):
    output = tmp_path / "out.jsonl"
    seen = []

    def reply(text):
        seen.append(text)
        return EngineDeadError("died") if len(seen) > 100 else text.upper()

    with pytest.raises(JobError):
        await ask(source, output, make_engine(reply), max_attempts=50)
    result = await ask(source, output, make_engine())
    assert result.counts.resumed >= 90
    assert [row["response"] for row in result.rows()] == [f"TEXT {n}" for n in range(300)]


async def test_a_part_that_fails_after_the_last_row_is_not_forgotten(
    source, tmp_path, make_engine, monkeypatch
):
    output = tmp_path / "out.jsonl"

    def finish(self):
        self.abandon()
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr("penstock.batch.write.text.JsonlWriter.finish", finish)
        with pytest.raises(OutputError, match="Input/output error"):
            await ask(source, output, make_engine(), limit=40)
    assert not output.exists()
    engine = make_engine()
    assert (await ask(source, output, engine, limit=40)).counts.resumed == 40
    assert not engine.asked


async def test_damaged_input_ends_the_job_but_keeps_what_is_done(tmp_path, make_engine):
    def generate(broken):
        yield from numbered(100)
        if broken:
            raise OSError("connection lost")

    with pytest.raises(InputError, match="connection lost"):
        await ask(generate(True), tmp_path / "out.jsonl", make_engine())
    result = await ask(generate(False), tmp_path / "out.jsonl", make_engine())
    assert [row["id"] for row in result.rows()] == list(range(100))


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
@pytest.mark.parametrize("name", ["out.jsonl", "out.parquet"])
async def test_a_full_disk_stops_the_job_which_goes_on_later(
    source, tmp_path, make_engine, monkeypatch, call, name
):
    output = tmp_path / name
    whole = await ask(source, tmp_path / f"whole-{name}", make_engine())
    await interrupted(source, output, make_engine(), 60)
    real = getattr(os, call)
    left = [1]

    def failing(*args, **kwargs):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*args, **kwargs)

    engine = make_engine()
    with monkeypatch.context() as patch:
        patch.setattr(f"penstock.batch.write.journal.os.{call}", failing)
        if call == "write":
            patch.setattr("penstock.batch.write.journal.Journal.__init__.__defaults__", (failing,))
        with pytest.raises(OutputError, match="No space left on device"):
            await ask(source, output, engine)
    assert not engine.alive
    result = await ask(source, output, make_engine())
    assert settled(result.rows()) == settled(whole.rows())


async def test_a_cancelled_job_is_held_until_its_output_is_written(
    tmp_path, make_engine, monkeypatch
):
    begun, go_on = threading.Event(), threading.Event()
    publish = State.publish

    def slow(self, *given):
        begun.set()
        assert go_on.wait(20)
        publish(self, *given)

    monkeypatch.setattr(State, "publish", slow)
    output = tmp_path / "out.jsonl"
    job = asyncio.create_task(ask(numbered(4), output, make_engine()))
    await asyncio.to_thread(begun.wait, 20)
    for _ in range(2):
        job.cancel()
        await asyncio.wait([job], timeout=0.01)
    with pytest.raises(JobError, match="another process"):
        await ask(numbered(4), output, make_engine())
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await job
    assert (await ask(numbered(4), output, make_engine())).already_complete
