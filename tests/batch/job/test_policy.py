"""What becomes of rows that fail, and jobs that have had enough."""

import pyarrow.parquet as pq
import pytest

from jobs import ask, lines, numbered
from penstock.engines.simulated.engine import SimulatedEngine
from penstock.errors import ConfigError, ContextLengthError, EngineError, JobError
from penstock.types import Delta, Usage

pytestmark = pytest.mark.usefixtures("small_parts")


def failing(*numbers, error=None):
    def reply(text):
        return (error or EngineError("no")) if int(text.split()[-1]) in numbers else text.upper()

    return reply


# Kinds of errors
@pytest.mark.parametrize("name", ["out.jsonl", "out.parquet", "out.csv", None])
async def test_rows_that_are_skipped_are_not_in_the_output(make_engine, tmp_path, name):
    engine = make_engine(failing(3, 50, 99))
    output = tmp_path / name if name else None
    result = await ask(numbered(100), output, engine, on_error={"engine_error": "skip"})
    assert (result.counts.rows, result.counts.errors) == (100, {"engine_error": 3})
    ids = [int(row["id"]) for row in result.rows()]
    assert ids == [n for n in range(100) if n not in (3, 50, 99)]


async def test_each_kind_has_its_action(make_engine, tmp_path):
    def reply(text):
        number = int(text.split()[-1])
        return {1: EngineError("a"), 2: ContextLengthError("b")}.get(number, text)

    policy = {"engine_error": "skip", "*": "keep"}
    result = await ask(numbered(4), tmp_path / "out.jsonl", make_engine(reply), on_error=policy)
    assert [(row["id"], row["status"]) for row in result.rows()] == [
        (0, "ok"),
        (2, "error"),
        (3, "ok"),
    ]
    with pytest.raises(JobError, match="row 2 failed at stage engine: b"):
        await ask(
            numbered(4), None, make_engine(reply), on_error={"context_length_exceeded": "fail"}
        )


async def test_an_error_that_does_not_look_as_if_it_passed_is_retried_if_asked_for(make_engine):
    failures = [EngineError("odd"), EngineError("odd")]
    engine = make_engine(lambda text: failures.pop() if failures else text)
    (row,) = (await ask(numbered(1), None, engine, on_error={"engine_error": "retry"})).rows()
    assert (row["status"], row["attempts"]) == ("ok", 3)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("drop", "on_error: must be keep, fail, skip or retry, not 'drop'"),
        ({"engine_eror": "skip"}, "no error is called 'engine_eror'. Did you mean 'engine_error'?"),
        ({"engine_error": "drop"}, "engine_error: must be keep"),
        (3, "on_error: must be an action"),
    ],
)
async def test_mistakes_in_policies(given, message):
    with pytest.raises(ConfigError) as error:
        await ask(numbered(1), None, SimulatedEngine(), on_error=given)
    assert message in str(error.value)


# Dead letters
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"on_error": "skip", "dead_letter": "failed.jsonl"}, "dead_letter: gets no rows"),
        ({"retry_failed": True, "fresh": True}, "retry_failed: has nothing to run again"),
        ({"output": "-", "retry_failed": True}, "retry_failed: needs an output"),
        ({"output": "-", "fresh": True}, "fresh: needs an output"),
    ],
)
async def test_options_without_an_effect_are_refused(tmp_path, make_engine, options, words):
    options = dict(options)
    output = options.pop("output", tmp_path / "out.jsonl")
    if "dead_letter" in options:
        options["dead_letter"] = tmp_path / options["dead_letter"]
    with pytest.raises(ConfigError, match=words):
        await ask(numbered(2), output, make_engine(), **options)


@pytest.mark.parametrize("name", ["out.jsonl", "out.parquet", "out.csv"])
@pytest.mark.parametrize("order", ["input", "done"])
async def test_dead_letters_and_their_second_try(make_engine, tmp_path, name, order):
    output, letters = tmp_path / name, tmp_path / "failed.jsonl"
    options = {"dead_letter": letters, "order": order}
    result = await ask(numbered(100), output, make_engine(failing(3, 60, 61)), **options)
    assert sorted(row["id"] for row in lines(letters)) == [3, 60, 61]
    assert {row["error"]["type"] for row in lines(letters)} == {"engine_error"}
    assert {row["status"] for row in result.rows()} == {"ok"}
    assert len(list(result.rows())) == 97
    engine = make_engine(failing(61))
    result = await ask(numbered(100), output, engine, retry_failed=True, **options)
    assert sorted(engine.asked) == ["text 3", "text 60", "text 61"]
    assert [row["id"] for row in lines(letters)] == [61]
    ids = [int(row["id"]) for row in result.rows()]
    assert sorted(ids) == [n for n in range(100) if n != 61]
    if order == "input":
        assert ids == sorted(ids)


async def test_dead_letters_beside_an_output_at_a_url(make_engine, tmp_path, monkeypatch):
    monkeypatch.setenv("PENSTOCK_STATE_DIR", str(tmp_path / "state"))
    url, letters = f"memory://{tmp_path.name}/out.jsonl", tmp_path / "failed.jsonl"
    options = {"dead_letter": letters}
    await ask(numbered(100), url, make_engine(failing(3, 60)), **options)
    result = await ask(numbered(100), url, make_engine(failing(60)), retry_failed=True, **options)
    assert [row["id"] for row in lines(letters)] == [60]
    assert [row["id"] for row in result.rows()] == [n for n in range(100) if n != 60]


async def test_skipped_rows_are_tried_again_too(make_engine, tmp_path):
    output = tmp_path / "out.parquet"
    await ask(numbered(100), output, make_engine(failing(5)), on_error="skip")
    await ask(numbered(100), output, make_engine(), on_error="skip", retry_failed=True)
    assert pq.read_table(output)["id"].to_pylist() == list(range(100))


async def test_a_dead_letter_needs_a_place(tmp_path):
    for output, letter in (
        (None, "a.jsonl"),
        (tmp_path / "o.jsonl", "a.csv"),
        (tmp_path / "o.jsonl", tmp_path / "no" / "a.jsonl"),
    ):
        with pytest.raises(ConfigError, match="dead_letter"):
            await ask(numbered(1), output, SimulatedEngine(), dead_letter=letter)


async def test_dead_letters_take_no_other_file(make_engine, tmp_path):
    source, output, other = tmp_path / "in.jsonl", tmp_path / "out.jsonl", tmp_path / "other.jsonl"
    source.write_text('{"id": 0, "text": "text 0"}\n')
    other.write_text("precious")
    (tmp_path / "data").symlink_to(tmp_path)
    for data, letters, error, message in (
        (source, source, ConfigError, "dead_letter: .* is part of the input"),
        (
            tmp_path,
            tmp_path / "new.jsonl",
            ConfigError,
            "(output|dead_letter): .* would be read as such",
        ),
        (source, tmp_path / "data" / "out.jsonl", ConfigError, "dead_letter: .* is the output"),
        (
            source,
            other,
            ConfigError,
            "other.jsonl exists and has no dead letters of this job; --fresh replaces it",
        ),
    ):
        with pytest.raises(error, match=message):
            await ask(data, output, make_engine(failing(0)), dead_letter=letters)
    assert source.read_text() == '{"id": 0, "text": "text 0"}\n'
    assert other.read_text() == "precious"
    await ask(source, output, make_engine(failing(0)), dead_letter=other, fresh=True)
    assert [row["id"] for row in lines(other)] == [0]
    result = await ask(source, output, make_engine(), dead_letter=other, retry_failed=True)
    assert (result.counts.ok, lines(other)) == (1, [])


# AnswerCache of the wrong length, or form
async def test_a_higher_limit_for_answers_that_were_cut_off():
    engine = SimulatedEngine(engine_kwargs={"output_tokens": 50, "max_model_len": 200})
    options = {"max_tokens": 10, "on_length": "raise"}
    (row,) = (await ask(numbered(1), None, engine, **options)).rows()
    assert row["finish_reason"] == "stop"
    assert len(row["response"]) == 50
    assert row["usage"]["completion_tokens"] == 10 + 20 + 40 + 50
    narrow = SimulatedEngine(engine_kwargs={"output_tokens": 50, "max_model_len": 37})
    (row,) = (await ask(numbered(1), None, narrow, **options)).rows()
    assert (row["finish_reason"], len(row["response"])) == ("length", 30)


async def test_a_prompt_that_is_too_long_is_shortened():
    engine = SimulatedEngine(engine_kwargs={"max_model_len": 200})
    source = [{"id": 0, "text": "x" * 1000}, {"id": 1, "text": "short"}]
    source.append({"id": 2, "text": "a thousand times too long " * 7_000})
    kept = list((await ask(source, None, engine, max_tokens=16)).rows())
    assert [row["status"] for row in kept] == ["error", "ok", "error"]
    cut = list((await ask(source, None, engine, max_tokens=16, on_length="raise, truncate")).rows())
    assert [row["status"] for row in cut] == ["ok", "ok", "ok"]
    assert all(130 < cut[n]["usage"]["prompt_tokens"] <= 184 for n in (0, 2))
    assert cut[1]["response"] == kept[1]["response"]


SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


async def test_the_model_is_told_what_was_wrong_with_its_json(make_engine):
    engine = make_engine(lambda text: {"a": 1} if text.startswith("That answer") else '{"a": "x"}')
    options = {"schema": SCHEMA, "on_invalid_json": "retry"}
    (row,) = (await ask(numbered(1), None, engine, **options)).rows()
    assert (row["status"], row["a"]) == ("ok", 1)
    assert [message["role"] for message in engine.requests[1].messages] == [
        "user",
        "assistant",
        "user",
    ]
    assert 'a: must be an integer, not "x"' in engine.asked[1]
    stubborn = make_engine(lambda text: "no json")
    (row,) = (await ask(numbered(1), None, stubborn, max_attempts=2, **options)).rows()
    assert (row["error"]["type"], len(stubborn.asked)) == ("invalid_json", 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on_length": "rise"}, "on_length: must be keep, raise or truncate, not 'rise'"),
        ({"on_length": "raise"}, "on_length: there is no max_tokens to raise"),
        ({"on_invalid_json": "retry"}, "on_invalid_json: has no meaning without a schema"),
        ({"on_invalid_json": "again"}, "on_invalid_json: must be keep or retry"),
        ({"max_error_rate": 2}, "max_error_rate: must be from 0 to 1"),
        ({"max_tokens_total": 0}, "max_tokens_total: must be at least 1"),
        ({"deadline": "soon"}, "deadline: must be seconds"),
        ({"deadline": "2020-01-01"}, "deadline: has passed"),
    ],
)
async def test_mistakes_in_options(options, message):
    with pytest.raises(ConfigError, match=message):
        await ask(numbered(1), None, SimulatedEngine(), **options)


async def test_usage_of_one_answer_is_left_alone(make_engine):
    answer = Delta(text="x", finish_reason="stop", usage=Usage(1, 2, 3))
    (row,) = (
        await ask(numbered(1), None, make_engine(lambda text: answer), on_length="truncate")
    ).rows()
    assert row["usage"] == {"prompt_tokens": 1, "completion_tokens": 2, "cached_tokens": 3}
