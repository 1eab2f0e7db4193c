"""Jobs with a small and a large model."""

import asyncio
import json

import pytest

import penstock
from jobs import lines, settled
from penstock.engines.simulated.engine import SimulatedEngine
from penstock.errors import ConfigError, JobLimitError, RequestError

TEAM = [{"name": "team", "instructions": "Which?", "options": ["billing", "shipping"]}]
SMALL, LARGE = {"seed": 1}, {"seed": 2}


class Knowing(SimulatedEngine):
    """Is sure of rows with an even number, and right about them; `right` of all rows."""

    def __init__(self, right=False):
        super().__init__("large" if right else "small")
        self.right = right
        self.asked = []

    async def label_shares(self, texts, request):
        shares, usage = await super().label_shares(texts, request)
        number = int(request.input[0]["content"].split()[-1])
        self.asked.append(number)
        even = number % 2 == 0
        first = 0.99 if self.right or even else 0.4
        return [type(one)([first, 1 - first], one.mass) for one in shares], usage


async def cascade(source, output=None, **options):
    options = {"prompt": "{text}", "decide": TEAM, "progress": False, **options}
    return await penstock.arun(source, output, **options)


async def test_rows_that_the_small_model_is_unsure_of_go_to_the_large_one(source, tmp_path):
    small, large = Knowing(), Knowing(right=True)
    result = await cascade(source, tmp_path / "out.jsonl", engine=[small, large])
    rows = lines(tmp_path / "out.jsonl")
    assert all(row["team"] == "billing" for row in rows)
    assert {row["model"] for row in rows if row["id"] % 2} == {"large"}
    kept = [row for row in rows if row["model"] == "small"]
    assert all(row["id"] % 2 == 0 for row in kept)
    # a sample of 60, and of the rest the odd rows; each row at most once
    assert len(set(large.asked)) == len(large.asked) == 300 - len(kept)
    assert result.counts.large_calls == len(large.asked)
    assert len(kept) > 100


async def test_rows_that_fail_are_error_rows_and_show_nothing(tmp_path):
    class Refusing(Knowing):
        async def label_shares(self, texts, request):
            if request.input[0]["content"].endswith("6"):
                raise RequestError("no")
            return await super().label_shares(texts, request)

    rows = [{"id": n, "text": f"text {n}"} if n % 10 else {"id": n} for n in range(300)]
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = await cascade(source, engine=[Refusing(), Knowing(right=True)])
    assert {row["id"] % 10 for row in result.rows() if row["status"] == "error"} == {0, 6}
    assert result.counts.failed == 60
    assert result.counts.large_calls < 250


async def test_a_small_model_that_is_often_wrong_decides_nothing(source, caplog):
    class Wrong(Knowing):
        async def label_shares(self, texts, request):
            shares, usage = await super().label_shares(texts, request)
            return [type(one)([0.01, 0.99], one.mass) for one in shares], usage

    large = Knowing(right=True)
    result = await cascade(source, engine=[Wrong(), large])
    assert {row["model"] for row in result.rows()} == {"large"}
    assert "all rows go to the large one" in caplog.text
    assert result.counts.large_calls == 300


@pytest.mark.parametrize("name", ["out.parquet", "out.csv"])
async def test_other_outputs(source, tmp_path, name):
    result = await cascade(
        source, tmp_path / name, model=["simulated"] * 2, engine_kwargs=[SMALL, LARGE], seed=3
    )
    assert {row["model"] for row in result.rows()} == {"simulated"}


async def test_a_resumed_job_takes_the_earlier_choice(source, tmp_path):
    output = tmp_path / "out.jsonl"
    whole = await cascade(source, engine=[Knowing(), Knowing(right=True)])

    job = penstock.Job(
        source,
        output,
        prompt="{text}",
        decide=TEAM,
        engine=[Knowing(), Knowing(right=True)],
        progress=False,
        max_tokens_total=15_000,
    )
    with pytest.raises(penstock.PenstockError):
        await job.arun()
    kept = json.loads((tmp_path / "out.jsonl.penstock" / "cascade.json").read_text())
    assert len(kept["answers"]) == 60
    assert not output.exists()
    small, large = Knowing(), Knowing(right=True)
    resumed = await cascade(source, output, engine=[small, large])
    assert resumed.counts.resumed > 0
    assert settled(lines(output)) == settled(whole.rows())
    assert len(small.asked) < 300


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"model": ["a"]}, "must be two"),
        ({"model": ["simulated", 3]}, "must be text"),
        ({"model": ["simulated", "simulated"], "decide": None}, "neither is asked for"),
        ({"model": "simulated", "target_accuracy": 0.9}, "there is one"),
        ({"model": ["simulated"] * 2, "target_accuracy": 1.5}, "must be from 0 to 1"),
        ({"model": ["simulated"] * 2, "runtime": "ray"}, "run here only"),
        ({"model": ["simulated"] * 2, "temperature": 0.5}, "generate nothing"),
    ],
)
async def test_refused(source, options, why):
    with pytest.raises(ConfigError, match=why):
        await cascade(source, **options)


async def test_an_input_that_can_be_read_once_has_no_sample():
    with pytest.raises(ConfigError, match="read twice"):
        await cascade(iter([{"text": "a"}]), model=["simulated"] * 2)


class Hanging(Knowing):
    """Never answers, or not the rows that end in 7."""

    def __init__(self, some=False):
        super().__init__()
        self.some = some

    async def label_shares(self, texts, request):
        if not self.some or request.input[0]["content"].endswith("7"):
            await asyncio.Event().wait()
        return await super().label_shares(texts, request)


async def test_a_row_that_hangs_in_the_sample_is_timed_out(tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps({"text": f"text {n}"}) + "\n" for n in range(10)))
    engines = [Hanging(some=True), Knowing(right=True)]
    result = await cascade(source, engine=engines, row_timeout=0.3)
    assert result.counts.errors == {"engine_timeout": 1}


async def test_the_deadline_ends_the_sample(source):
    with pytest.raises(JobLimitError, match="deadline"):
        await cascade(source, engine=[Hanging(), Knowing(right=True)], deadline=0.3)


async def test_the_time_of_the_sample_counts(source):
    class Slow(Knowing):
        async def label_shares(self, texts, request):
            await asyncio.sleep(0.05)
            return await super().label_shares(texts, request)

    few = await cascade(source, engine=[Slow(), Knowing(right=True)], limit=5)
    assert few.counts.row_seconds >= 0.05
