"""Jobs whose structured answers come from a small or a large model."""

import math

import msgspec
import pyarrow as pa
import pytest

import penstock
from jobs import lines, settled
from penstock.batch.flow import Flow
from penstock.engines.simulated.engine import SimulatedEngine
from penstock.errors import ConfigError, JobError, JobLimitError, UnsupportedError
from penstock.types import Delta, TokenLogprob, Usage

SCHEMA = {"type": "object", "properties": {"even": {"type": "boolean"}}, "required": ["even"]}


class Knowing(SimulatedEngine):
    """Says whether a row's number is even. If it is not `right`, it says so of all rows, and is
    unsure of one token where that is wrong.
    """

    def __init__(self, right=False, broken=()):
        super().__init__("large" if right else "small")
        self.right = right
        self.broken = broken
        self.asked = []

    async def generate(self, request):
        number = int(request.messages[-1]["content"].split()[-1])
        self.asked.append((number, request.sampling.logprobs))
        even = number % 2 == 0
        text = f'{{"even": {"true" if even or not self.right else "false"}}}'
        if number in self.broken:
            text = text[:-1]
        unsure = math.log(0.99 if even else 0.3)
        scores = (TokenLogprob("{", -0.001), TokenLogprob("e", unsure))
        yield [Delta(text=text, finish_reason="stop", usage=Usage(5, 2), logprobs=scores)]


async def cascade(source, output=None, **options):
    options = {"prompt": "{text}", "schema": SCHEMA, "progress": False, **options}
    return await penstock.arun(source, output, **options)


async def test_answers_that_the_small_model_is_unsure_of_come_from_the_large_one(source, tmp_path):
    small, large = Knowing(), Knowing(right=True)
    result = await cascade(source, tmp_path / "out.jsonl", engine=[small, large])
    rows = lines(tmp_path / "out.jsonl")
    assert all(row["even"] is (row["id"] % 2 == 0) for row in rows)
    assert {row["model"] for row in rows if row["id"] % 2} == {"large"}
    assert sum(row["model"] == "small" for row in rows) == 300 - len(large.asked) > 100
    assert result.counts.large_calls == len(large.asked)
    assert {logprobs for _, logprobs in small.asked} == {0}
    assert {logprobs for _, logprobs in large.asked} == {None}


async def test_an_answer_off_its_schema_goes_to_the_large_model(source):
    numbers = range(0, 300, 10)
    result = await cascade(source, engine=[Knowing(broken=numbers), Knowing(right=True)])
    broken = [row for row in result.rows() if row["id"] % 10 == 0]
    assert {(row["status"], row["model"]) for row in broken} == {("ok", "large")}


async def test_an_answer_that_neither_makes_is_an_error_row(source):
    numbers = range(0, 300, 10)
    engines = [Knowing(broken=numbers), Knowing(right=True, broken=numbers)]
    result = await cascade(source, engine=engines)
    failed = [row for row in result.rows() if row["status"] == "error"]
    assert {row["id"] for row in failed} == set(numbers)
    assert {(row["even"], row["model"]) for row in failed} == {(None, None)}


async def test_failed_rows_of_the_sample_are_asked_again(source, tmp_path):
    engines = [Knowing(broken=range(0, 300, 10)), Knowing(right=True, broken=range(0, 300, 10))]
    output = tmp_path / "out.jsonl"
    with pytest.raises(JobLimitError):  # not complete, so what it learned of the sample is kept
        await cascade(source, output, engine=engines, max_tokens_total=2_000)
    await cascade(source, output, engine=[Knowing(), Knowing(right=True)], retry_failed=True)
    assert {row["status"] for row in lines(output)} == {"ok"}


async def test_a_sample_that_was_asked_is_kept_before_any_row_is_done(
    source, tmp_path, monkeypatch
):
    async def killed(self):
        raise JobError("killed")

    small, output = Knowing(), tmp_path / "out.jsonl"
    with monkeypatch.context() as patch:
        patch.setattr(Flow, "run", killed)
        with pytest.raises(JobError, match="killed"):
            await cascade(source, output, engine=[small, Knowing(right=True)])
    sample = len(small.asked)
    await cascade(source, output, engine=[small, Knowing(right=True)])
    assert (sample > 0, len(small.asked)) == (True, 300)


async def test_the_questions_to_the_sample_count(source):
    small, large = Knowing(), Knowing(right=True)
    result = await cascade(source, engine=[small, large])
    assert {row["attempts"] for row in result.rows()} == {1, 2}
    assert result.counts.engine_calls == len(small.asked) + len(large.asked)


@pytest.mark.parametrize("name", ["out.parquet", "out.csv"])
async def test_other_outputs(source, tmp_path, name):
    result = await cascade(source, tmp_path / name, engine=[Knowing(), Knowing(right=True)])
    assert {row["model"] for row in result.rows()} == {"small", "large"}


async def test_a_resumed_job_takes_the_earlier_choice(source, tmp_path):
    output = tmp_path / "out.jsonl"
    whole = await cascade(source, engine=[Knowing(), Knowing(right=True)])
    with pytest.raises(penstock.PenstockError):
        await cascade(
            source, output, engine=[Knowing(), Knowing(right=True)], max_tokens_total=1_200
        )
    small = Knowing()
    resumed = await cascade(source, output, engine=[small, Knowing(right=True)])
    assert 0 < resumed.counts.resumed < 300
    assert settled(lines(output)) == settled(whole.rows())
    assert len(small.asked) < 300


@pytest.mark.parametrize("blind", ["small", "large"])
async def test_a_model_that_reads_text_alone_gets_no_images(blind):
    engines = [Knowing(), Knowing(right=True)]
    for engine in engines:
        inputs = ("text",) if engine.model_source == blind else ("text", "image")
        engine.capabilities = msgspec.structs.replace(engine.capabilities, inputs=inputs)
    rows = pa.table({"text": ["row 0", "row 1"], "picture": ["0.png", None]})
    with pytest.raises(UnsupportedError, match=f"with '{blind}', which is no model that sees"):
        await cascade(rows, engine=engines, image="picture")
    assert [engine.asked for engine in engines] == [[], []]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"temperature": 0.5}, "must be 0"),
        ({"schema": None}, "neither is asked for"),
        (
            {"schema": {"type": "object", "properties": {"model": {"type": "string"}}}},
            "name of a result column",
        ),
        ({"adapter": "a"}, "no meaning for two models"),
    ],
)
async def test_refused(source, options, why):
    with pytest.raises(ConfigError, match=why):
        await cascade(source, engine=[Knowing(), Knowing(right=True)], **options)
