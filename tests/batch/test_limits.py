"""Jobs that have had enough: they stop at their limits, cleanly, and go on to the same end as if
they had not.
"""

from datetime import datetime, timedelta

import pyarrow.parquet as pq
import pytest

import penstock
from jobs import ask, lines, numbered
from penstock.batch import OpenVINOEngineProcessorConfig, build_processor
from penstock.batch.job.policy import seconds_until
from penstock.engines.simulated.engine import SimulatedEngine
from penstock.errors import ConfigError, EngineError, JobLimitError

pytestmark = pytest.mark.usefixtures("small_parts")


def failing(*numbers):
    return lambda text: EngineError("no") if int(text.split()[-1]) in numbers else text.upper()


async def test_a_job_stops_at_its_tokens_and_goes_on(tmp_path):
    output = tmp_path / "out.jsonl"
    engine = SimulatedEngine(engine_kwargs={"output_tokens": 20, "max_num_seqs": 4})
    with pytest.raises(JobLimitError, match=r"max_tokens_total is 1,000$"):
        await ask(numbered(100), None, engine, max_tokens_total=1000)
    with pytest.raises(JobLimitError, match="max_tokens_total is 1,000") as stop:
        await ask(numbered(100), output, engine, max_tokens_total=1000)
    assert not output.exists()
    result = await ask(numbered(100), output, engine)
    assert (
        f"{result.counts.resumed} rows are done and kept; the same command with a wider limit"
        in str(stop.value)
    )
    assert [row["id"] for row in lines(output)] == list(range(100))
    assert 30 <= result.counts.resumed <= 50
    assert result.counts.engine_calls == 100 - result.counts.resumed


async def test_a_job_stops_at_too_many_errors(make_engine, tmp_path):
    bad = failing(*range(0, 1000, 3))
    with pytest.raises(
        JobLimitError, match=r"of .* rows failed \(3.\..%\), and max_error_rate is 10.0%"
    ):
        await ask(numbered(1000), tmp_path / "out.jsonl", make_engine(bad), max_error_rate=0.1)
    few = make_engine(failing(1, 2, 3))
    await ask(numbered(1000), tmp_path / "few.jsonl", few, max_error_rate=0.1)
    with pytest.raises(JobLimitError, match="3 of 4 rows failed"):
        await ask(
            numbered(4), tmp_path / "end.jsonl", make_engine(failing(1, 2, 3)), max_error_rate=0.1
        )


async def test_a_job_stops_at_its_deadline(tmp_path):
    output = tmp_path / "out.jsonl"
    engine = SimulatedEngine(
        engine_kwargs={"max_num_seqs": 2, "time_per_token_ms": 1, "output_tokens": 8}
    )
    with pytest.raises(JobLimitError, match="the deadline is reached"):
        await ask(numbered(1000), output, engine, deadline=0.1)
    result = await ask(numbered(1000), output, SimulatedEngine(engine_kwargs={"output_tokens": 8}))
    assert result.counts.resumed < 1000
    assert len(lines(output)) == 1000


async def test_a_deadline_counts_the_time_that_the_engine_takes_to_start():
    engine = SimulatedEngine(engine_kwargs={"start_ms": 50})
    with pytest.raises(JobLimitError, match="the deadline is reached"):
        await ask(numbered(1), None, engine, deadline=0.02)
    assert engine.requests_served == 0


def test_deadlines():
    assert seconds_until(None) is None
    assert (
        seconds_until(90)
        == seconds_until("90")
        == seconds_until("90s")
        == seconds_until("1.5m")
        == 90
    )
    assert seconds_until(timedelta(hours=2)) == seconds_until("2h") == 7200
    later = datetime.now() + timedelta(hours=1)
    for given in (later, later.isoformat()):
        assert 3590 < (seconds_until(given) or 0) <= 3600
    beyond = ["0001-01-01", 10**400, datetime.min]
    wrongs: list = [True, "nan", float("nan"), [], "x", *beyond]
    for wrong in wrongs:
        with pytest.raises(ConfigError):
            seconds_until(wrong)


# What a job that was stopped comes to
LIMITS: dict[str, dict] = {
    "tokens": {"max_tokens_total": 1500},
    "errors": {"max_error_rate": 0.05},
    "time": {"deadline": 0.05},
}
SLOW = {"max_num_seqs": 8, "time_per_token_ms": 1, "max_model_len": 300}


def mixed(count=200):
    """Rows of which one in ten is too long."""
    return [
        {"id": n, "text": f"text {n} " + "x" * (1000 if n % 10 == 7 else 10)} for n in range(count)
    ]


def without_speed(rows):
    return [
        {name: value for name, value in row.items() if name not in ("latency_ms", "attempts")}
        for row in rows
    ]


@pytest.mark.parametrize("name", ["out.jsonl", "out.parquet"])
@pytest.mark.parametrize("limit", LIMITS)
async def test_a_job_that_was_stopped_comes_to_the_same_end(tmp_path, limit, name):
    def engine():
        return SimulatedEngine(engine_kwargs=SLOW)

    def read(path):
        return without_speed(
            lines(path) if name == "out.jsonl" else pq.read_table(path).to_pylist()
        )

    source, output, clean = mixed(), tmp_path / name, tmp_path / f"clean-{name}"
    await ask(source, clean, engine(), max_tokens=8)
    with pytest.raises(JobLimitError):
        await ask(source, output, engine(), max_tokens=8, **LIMITS[limit])
    assert not output.exists()
    result = await ask(source, output, engine(), max_tokens=8)
    assert result.counts.resumed < 200
    # A machine may be too busy to finish any in time.
    assert result.counts.resumed or limit == "time"
    assert result.counts.engine_calls == 200 - result.counts.resumed
    assert read(output) == read(clean)
    assert result.counts.errors == {"context_length_exceeded": 20}


@pytest.mark.parametrize("limit", LIMITS)
async def test_so_does_one_with_a_processor(tmp_path, limit):
    def processor():
        config = OpenVINOEngineProcessorConfig(
            engine=SimulatedEngine(engine_kwargs=SLOW), should_continue_on_error=True
        )
        params = {"temperature": 0, "max_tokens": 8}
        return build_processor(
            config,
            preprocess=lambda row: {"prompt": row["text"], "sampling_params": params},
            postprocess=lambda row: {"id": row["id"], "answer": row["generated_text"]},
        )

    async def run(output, **options):
        return await penstock.arun(
            mixed(), output, processor=processor(), progress=False, **options
        )

    output, clean = tmp_path / "out.jsonl", tmp_path / "clean.jsonl"
    await run(clean)
    with pytest.raises(JobLimitError):
        await run(output, **LIMITS[limit])
    result = await run(output)
    assert result.counts.resumed < 200
    # A machine may be too busy to finish any in time.
    assert result.counts.resumed or limit == "time"
    assert output.read_bytes() == clean.read_bytes()
    assert result.counts.errors == {"context_length_exceeded": 20}


async def test_rows_under_way_finish_when_a_limit_is_reached(tmp_path):
    """What was paid for is kept: of no request the answer is thrown away."""
    engine = SimulatedEngine(engine_kwargs={"max_num_seqs": 4, "output_tokens": 20})
    with pytest.raises(JobLimitError):
        await ask(numbered(100), tmp_path / "out.jsonl", engine, max_tokens_total=300)
    served = engine.requests_served
    result = await ask(numbered(100), tmp_path / "out.jsonl", engine)
    assert result.counts.resumed == served
    assert engine.requests_served == 100
