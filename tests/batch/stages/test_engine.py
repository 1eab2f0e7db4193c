"""The engine stage, on an engine whose answers the test decides and on the simulated one."""

import asyncio
import errno
import os

import numpy
import pytest

from penstock.batch import OpenVINOEngineProcessorConfig, build_processor
from penstock.engines.base import Capabilities
from penstock.engines.simulated.engine import SimulatedEngine
from penstock.errors import (
    ConfigError,
    ContextLengthError,
    EngineDeadError,
    EngineTimeoutError,
    JobError,
)
from penstock.types import (
    Classification,
    Classifications,
    Delta,
    Embeddings,
    ToolCallPart,
    Transcription,
    Usage,
)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr("penstock.batch.pipeline.pipeline.LONGEST_PAUSE", 0.0)


def processor(engine, preprocess=None, postprocess=None, **config):
    return build_processor(
        OpenVINOEngineProcessorConfig(engine=engine, **config), preprocess, postprocess
    )


async def all_of(stream):
    return [row async for row in stream]


def chat(text, **columns):
    return {"messages": [{"role": "user", "content": text}], **columns}


GREEDY = {"temperature": 0.0, "max_tokens": 8}


async def test_the_columns_of_an_answer():
    (row,) = await all_of(
        processor(SimulatedEngine())([chat("hello", id=1, sampling_params=GREEDY)])
    )
    assert row.pop("time_taken_llm") >= 0
    text = row.pop("generated_text")
    assert len(text) == 8
    assert row == {
        **chat("hello", id=1, sampling_params=GREEDY),
        "prompt": None,
        "generated_tokens": list(text.encode()),
        "num_input_tokens": 6,
        "num_generated_tokens": 8,
        "num_cached_tokens": 0,
        "finish_reason": "length",
        "reasoning_content": None,
        "tool_calls": None,
        "logprobs": None,
        "outputs": None,
    }


async def test_a_prompt_as_text_and_as_tokens_gives_the_same():
    rows = [
        {"prompt": "abc", "sampling_params": GREEDY},
        {"tokenized_prompt": [97, 98, 99], "sampling_params": GREEDY},
    ]
    first, second = await all_of(processor(SimulatedEngine())(rows))
    assert first["generated_text"] == second["generated_text"]


async def test_several_answers_and_their_probabilities():
    params = {"n": 3, "logprobs": 2, "seed": 1, "max_tokens": 4}
    (row,) = await all_of(processor(SimulatedEngine())([chat("a", sampling_params=params)]))
    assert len(row["outputs"]) == 3
    assert row["outputs"][0]["generated_text"] == row["generated_text"]
    assert {output["finish_reason"] for output in row["outputs"]} == {"length"}
    assert row["logprobs"][0].keys() == {"token", "logprob", "bytes", "top_logprobs"}
    assert len(row["logprobs"]) == 4
    assert row["num_generated_tokens"] == 12


async def test_tool_calls_and_reasoning_are_columns(make_engine):
    call = ToolCallPart(0, '{"city": "Rome"}', "call_1", "weather")
    usage = Usage(3, 5)
    answers = {
        "tool": Delta(finish_reason="tool_calls", usage=usage, tool_calls=(call,)),
        "think": "<think>\nHm.\n</think>\n\nRome.",
        "cut": "<think>Hm",
    }
    engine = make_engine(lambda text: answers[text])
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]
    rows = [chat("tool", tools=tools, tool_choice="auto"), chat("think"), chat("cut")]
    tool, think, cut = await all_of(processor(engine)(rows))
    assert tool["finish_reason"] == "tool_calls"
    function = {"name": "weather", "arguments": '{"city": "Rome"}'}
    assert tool["tool_calls"] == [{"id": "call_1", "type": "function", "function": function}]
    assert engine.requests[0].tools == tools
    assert (think["reasoning_content"], think["generated_text"]) == ("Hm.", "Rome.")
    assert (cut["reasoning_content"], cut["generated_text"]) == ("Hm", "")


@pytest.mark.parametrize(
    "names", [("min_tokens", "max_tokens"), ("min_new_tokens", "max_new_tokens")]
)
async def test_limits_in_the_names_of_each_engine(make_engine, names):
    engine = make_engine(lambda text: "b")
    await all_of(
        processor(engine)([chat("a", sampling_params=dict(zip(names, (2, 4), strict=True)))])
    )
    assert (engine.requests[0].sampling.min_tokens, engine.requests[0].sampling.max_tokens) == (
        2,
        4,
    )


async def test_structured_output_in_each_of_its_names():
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}}
    rows = [
        chat("a", sampling_params={"structured_outputs": {"json": schema}}),
        chat("a", sampling_params={"guided_decoding": {"json": schema}}),
        chat("a", sampling_params={"json_schema": schema}),
        chat(
            "a",
            response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
        ),
    ]
    found = await all_of(processor(SimulatedEngine())(rows))
    assert all(row["generated_text"].startswith('{"n": ') for row in found)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"sampling_params": {"temprature": 1}},
            "unknown key 'temprature'. Did you mean 'temperature'?",
        ),
        (
            {"sampling_params": {"temperature": "hot"}},
            "sampling_params.temperature: must be a number",
        ),
        ({"sampling_params": 3}, "sampling_params must be a dict"),
        (
            {"sampling_params": {"logit_bias": {"1": 2.0}}},
            "the simulated engine takes no logit_bias",
        ),
        (
            {"sampling_params": {"structured_outputs": {"grammar": "x"}}},
            "the simulated engine does not support grammar output",
        ),
        ({"response_format": {"type": "xml"}}, "unknown response_format type 'xml'"),
        ({"messages": "hi"}, "column 'messages' holds no list of messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "role must be one of"),
        ({"messages": None}, "no column 'messages' or 'prompt'"),
        ({"model": 3}, "model must be a text"),
        ({"mm_processor_kwargs": {"fps": 1}}, "the column 'mm_processor_kwargs' is not supported"),
        (
            {"messages": None, "prompt": "a", "multimodal_data": {"image": b"x"}},
            "images belong into 'messages'",
        ),
    ],
)
async def test_mistakes_of_a_row(columns, message):
    (row,) = await all_of(
        processor(SimulatedEngine(), should_continue_on_error=True)([chat("a", **columns)])
    )
    assert row["error"]["stage"] == "OpenVINOEngineStage"
    assert message in row["error"]["message"]


async def test_empty_parts_of_columnar_data_were_never_there():
    row = chat(
        "a", sampling_params={"temperature": 0.0, "max_tokens": 4, "stop": None, "seed": None}
    )
    row["messages"][0]["tool_calls"] = None
    (found,) = await all_of(processor(SimulatedEngine())([row]))
    assert len(found["generated_text"]) == 4


async def test_equal_requests_are_asked_once(make_engine):
    engine = make_engine()
    rows = [chat(f"text {n % 10}", id=n, sampling_params={"temperature": 0}) for n in range(100)]
    stream = processor(
        engine, postprocess=lambda row: {"id": row["id"], "text": row["generated_text"]}
    )(rows)
    assert await all_of(stream) == [{"id": n, "text": f"TEXT {n % 10}"} for n in range(100)]
    assert len(engine.asked) == 10
    assert stream.counts.deduplicated == 90
    await all_of(processor(engine)([chat("sampled", id=n) for n in range(5)]))
    assert engine.asked.count("sampled") == 5


async def test_equal_is_what_has_equal_values(make_engine):
    """Arrays are compared by what they hold, and objects of which nothing is known are equal to
    none.
    """
    rows = [
        {"tokenized_prompt": numpy.array([97 + n % 2, 98]), "sampling_params": GREEDY}
        for n in range(4)
    ]
    stream = processor(SimulatedEngine())(rows)
    texts = [row["generated_text"] for row in await all_of(stream)]
    assert texts[0] == texts[2] != texts[1] == texts[3]
    assert stream.counts.deduplicated == 2
    rows = [
        chat("a", chat_template_kwargs={"given": object()}, sampling_params=GREEDY)
        for _ in range(3)
    ]
    stream = processor(make_engine())(rows)
    assert len(await all_of(stream)) == 3
    assert stream.counts.deduplicated == 0


async def test_what_one_row_does_to_its_answer_is_nothing_to_equal_rows(make_engine):
    def spoil(row):
        row["tool_calls"].append("more")
        return {"calls": len(row["tool_calls"])}

    call = Delta(
        finish_reason="tool_calls", usage=Usage(1, 1), tool_calls=(ToolCallPart(0, "{}", "1", "f"),)
    )
    rows = [chat("same", sampling_params={"temperature": 0}) for _ in range(200)]
    stream = processor(make_engine(lambda text: call), postprocess=spoil)(rows)
    assert await all_of(stream) == [{"calls": 2}] * 200
    assert stream.counts.deduplicated == 199


async def test_what_may_pass_is_asked_again(make_engine):
    failures = [EngineTimeoutError("late"), EngineDeadError("died")]
    engine = make_engine(
        lambda text: failures.pop() if text == "hard" and failures else text.upper()
    )
    found = await all_of(processor(engine)([chat("easy"), chat("hard"), chat("other")]))
    assert [row["generated_text"] for row in found] == ["EASY", "HARD", "OTHER"]
    assert engine.starts == 2
    assert engine.stops == 2  # before its second start, and in the end


async def test_the_engine_is_kept_a_little_more_than_full(make_engine):
    for most, options in (
        (20, {}),
        (3, {"max_pending_requests": 3}),
        (12, {"max_pending_requests": -1, "batch_size": 6, "max_concurrent_batches": 2}),
    ):
        engine = make_engine(concurrency=16)
        await all_of(processor(engine, **options)([chat(f"{n}") for n in range(200)]))
        assert engine.most == most


async def test_a_running_engine_is_left_running(make_engine):
    engine = make_engine()
    await engine.start()
    await all_of(processor(engine)([chat("a")]))
    assert (engine.starts, engine.stops) == (1, 0)
    cold = make_engine()
    await all_of(processor(cold)([chat("a")]))
    assert (cold.starts, cold.stops) == (1, 1)


async def test_two_processors_at_a_time_start_one_engine(make_engine):
    engine = make_engine()
    first = processor(
        engine, lambda row: chat(f"one {row['id']}"), lambda row: {"said": row["generated_text"]}
    )
    second = processor(
        engine, lambda row: chat(row["said"].lower()), lambda row: {"answer": row["generated_text"]}
    )
    assert await all_of(second(first([{"id": n} for n in range(50)]))) == [
        {"answer": f"ONE {n}"} for n in range(50)
    ]
    assert (engine.starts, engine.stops) == (1, 1)


async def test_adapters_by_row(make_engine, tmp_path):
    (tmp_path / "fr").mkdir()
    engine = make_engine()
    rows = [
        chat("a", model="fr"),
        chat("b", model=None),
        chat("c", model="scripted-model"),
        chat("d", model="fr"),
    ]
    await all_of(processor(engine, dynamic_lora_loading_path=str(tmp_path))(rows))
    used = {request.messages[0]["content"]: request.adapter for request in engine.requests}
    assert used == {"a": "fr", "b": None, "c": None, "d": "fr"}
    assert engine.resolved == [("fr", str(tmp_path / "fr"))]
    kept = processor(engine, dynamic_lora_loading_path=str(tmp_path), should_continue_on_error=True)
    (row,) = await all_of(kept([chat("a", model="absent")]))
    assert row["error"]["type"] == "model_not_found"


async def test_embeddings():
    rows = [{"prompt": "a"}, {"prompt": "b", "pooling_params": {"dimensions": 4}}, {"text": "c"}]
    config = {"task_type": "embed", "should_continue_on_error": True}
    first, second, wrong = await all_of(processor(SimulatedEngine(), **config)(rows))
    assert len(first["embeddings"]) == 16
    assert len(second["embeddings"]) == 4
    assert first["num_input_tokens"] == 1
    assert wrong["error"]["message"] == "the row has no text in column 'prompt'"


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"pooling_params": {"normalize": True}},
            "normalize is not supported, but dimensions, input_type, task",
        ),
        ({"pooling_params": [1]}, "pooling_params must be a dict"),
        (
            {"tokenization_kwargs": {"truncation": True}},
            "the column 'tokenization_kwargs' is not supported",
        ),
    ],
)
async def test_what_embeddings_would_not_follow(columns, message):
    config = {"task_type": "embed", "should_continue_on_error": True}
    (row,) = await all_of(processor(SimulatedEngine(), **config)([{"prompt": "a", **columns}]))
    assert message in row["error"]["message"]
    empty = {
        "prompt": "a",
        "pooling_params": {"dimensions": 4, "normalize": None},
        "tokenization_kwargs": None,
    }
    (row,) = await all_of(processor(SimulatedEngine(), **config)([empty]))
    assert len(row["embeddings"]) == 4


async def test_a_text_to_embed_that_is_too_long_is_shortened(make_engine):
    engine = make_engine()
    engine.capabilities = Capabilities(frozenset({"embeddings"}), 100, 4)

    async def embeddings(request):
        (text,) = request.inputs
        if len(text) > 100:
            raise ContextLengthError("too long")
        return Embeddings([[float(len(text))]], Usage(len(text)))

    engine.embeddings = embeddings
    config = {"task_type": "embed", "should_continue_on_error": True}
    rows = [{"prompt": "x" * 100_000}, {"prompt": "y" * 99}]
    kept = await all_of(processor(engine, **config)(rows))
    assert [row["status"] for row in kept] == ["error", "ok"]
    cut = await all_of(processor(engine, on_length="truncate", **config)(rows))
    assert [row["status"] for row in cut] == ["ok", "ok"]
    assert 75 <= len(cut[0]["prompt"]) == cut[0]["embeddings"][0] <= 100
    assert cut[1]["prompt"] == "y" * 99


async def test_scores_of_pairs_and_of_several():
    rows = [
        {"text_1": "red fox", "text_2": "a fox"},
        {"query": "red fox", "documents": ["a fox", "red fox", "none"]},
        {"query": "red fox", "document": "red"},
    ]
    pair, several, single = await all_of(processor(SimulatedEngine(), task_type="score")(rows))
    assert (pair["score"], pair["scores"]) == (0.5, [0.5])
    assert (several["score"], several["scores"]) == (None, [0.5, 1.0, 0.0])
    assert single["score"] == 0.5


async def test_classification_by_a_language_model():
    rows = [{"prompt": f"text {n}", "labels": ["good", "bad"]} for n in range(20)]
    found = await all_of(processor(SimulatedEngine(), task_type="classify")(rows))
    assert {row["label"] for row in found} == {"good", "bad"}


async def test_classification_by_a_model_that_does_nothing_else(make_engine):
    engine = make_engine()
    engine.capabilities = Capabilities(frozenset({"classify"}), 100, 4)

    async def classify(request):
        return Classifications(
            [Classification("good", [0.25, 0.75]) for _ in request.inputs], Usage(3)
        )

    engine.classify = classify
    (row,) = await all_of(processor(engine, task_type="classify")([{"prompt": "a"}]))
    assert (row["label"], row["probabilities"], row["num_input_tokens"]) == (
        "good",
        [0.25, 0.75],
        3,
    )
    kept = processor(SimulatedEngine(), task_type="classify", should_continue_on_error=True)
    (row,) = await all_of(kept([{"prompt": "a"}]))
    assert row["error"]["message"] == "a language model needs a list of texts in column 'labels'"


async def test_decisions():
    asks = [
        {"name": "team", "instructions": "Which?", "options": ["a", "b"]},
        {"name": "urgent", "instructions": "Urgent?"},
    ]
    rows = [
        {"prompt": "text", "questions": asks},
        {"messages": [{"role": "user", "content": "text"}], "questions": asks},
        {"prompt": "text", "questions": asks[:1] * 2},
    ]
    kept = processor(SimulatedEngine(), task_type="decide", should_continue_on_error=True)
    one, same, bad = await all_of(kept(rows))
    assert one["decisions"] == same["decisions"]
    assert sum(one["decisions"]["team"]["probabilities"].values()) == pytest.approx(1)
    assert one["decisions"]["urgent"]["value"] in (True, False)
    assert set(one["decisions"]["urgent"]["probabilities"]) == {"true", "false"}
    assert "questions[1] ('team')" in bad["error"]["message"]


async def test_recordings_are_written_down(make_engine, tmp_path):
    (tmp_path / "a.wav").write_bytes(b"RIFFa")
    engine = make_engine()
    engine.capabilities = Capabilities(frozenset({"transcriptions"}), 100, 4)
    heard = []

    async def transcriptions(request):
        heard.append((request.audio, request.language))
        return Transcription("words")

    engine.transcriptions = transcriptions
    rows = [
        {"audio": str(tmp_path / "a.wav"), "language": "en"},
        {"audio": b"RIFFb"},
        {"audio": "/absent.wav"},
        {},
    ]
    found = await all_of(
        processor(engine, task_type="transcribe", should_continue_on_error=True)(rows)
    )
    assert [row["status"] for row in found] == ["ok", "ok", "error", "error"]
    assert found[0]["transcription"] == found[0]["generated_text"] == "words"
    assert sorted(heard, key=str) == [(b"RIFFa", "en"), (b"RIFFb", None)]
    assert (
        f"'/absent.wav' cannot be loaded: {os.strerror(errno.ENOENT)}"
        in found[2]["error"]["message"]
    )


async def test_reasoning_that_the_engine_tells_apart(make_engine):
    answer = Delta(text="Rome.", reasoning="Hm.", finish_reason="stop", usage=Usage(1, 2))
    (row,) = await all_of(processor(make_engine(lambda text: answer))([chat("a")]))
    assert (row["reasoning_content"], row["generated_text"]) == ("Hm.", "Rome.")


async def test_columns_that_are_arrays():
    def array(*values):
        found = numpy.empty(len(values), dtype=object)
        found[:] = values
        return found

    function = {"type": "function", "function": {"name": "f", "parameters": {}}}
    messages = array({"role": "user", "content": "a"})
    rows: list[dict] = [
        {"messages": messages, "tools": array()},
        {"messages": messages, "tools": array(function)},
        {"prompt": None, "tokenized_prompt": numpy.array([97, 98])},
        {"prompt": None, "tokenized_prompt": [numpy.int64(97)]},
    ]
    for own in (True, {"batch_size": 4}):
        found = await all_of(processor(SimulatedEngine(), chat_template_stage=own)(rows))
        assert all(row["generated_text"] for row in found)
    labelled = {"labels": array("a", "b")}
    for given in ({"prompt": "x"}, {"messages": messages}):
        asks = processor(SimulatedEngine(), task_type="classify")
        (row,) = await all_of(asks([{**given, **labelled}]))
        assert row["label"] in ("a", "b")


@pytest.mark.parametrize("task", ["generate", "embed"])
@pytest.mark.parametrize("ids", [["a"], [[1]], 3, "ab"])
async def test_what_are_no_token_ids(task, ids):
    kept = processor(SimulatedEngine(), task_type=task, should_continue_on_error=True)
    (row,) = await all_of(kept([{"tokenized_prompt": ids}]))
    assert row["error"]["message"] == "tokenized_prompt must be a list of token ids"


async def test_a_task_that_the_model_does_not_do(make_engine):
    with pytest.raises(
        ConfigError,
        match="task_type: the scripted engine cannot embed with this model; it offers chat",
    ):
        await all_of(processor(make_engine(), task_type="embed")([{"prompt": "a"}]))


async def test_an_engine_that_keeps_dying_ends_the_run(make_engine):
    engine = make_engine(lambda text: EngineDeadError("died"))
    with pytest.raises(JobError, match="the engine died 4 times without finishing a row"):
        await all_of(processor(engine, should_continue_on_error=True, max_attempts=9)([chat("a")]))


async def test_cancelling_frees_the_engine():
    engine = SimulatedEngine(engine_kwargs={"hang_rate": 1.0})
    await engine.start()
    task = asyncio.create_task(all_of(processor(engine)([chat("a"), chat("b")])))
    while engine.running < 2:  # noqa: ASYNC110
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert engine.running == 0
    await engine.stop()


# Answers of the wrong length, or form
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


async def test_a_higher_limit_for_answers_that_were_cut_off():
    engine = SimulatedEngine(engine_kwargs={"output_tokens": 50, "max_model_len": 200})
    rows = [chat("a", sampling_params={"temperature": 0.0, "max_tokens": 10})]
    (row,) = await all_of(processor(engine, on_length="raise")(rows))
    assert (row["finish_reason"], len(row["generated_text"])) == ("stop", 50)
    assert row["num_generated_tokens"] == 10 + 20 + 40 + 50
    (row,) = await all_of(
        processor(engine, on_length="raise")([{**rows[0], "prompt": "a", "messages": None}])
    )
    assert (row["finish_reason"], len(row["generated_text"])) == ("stop", 50)


@pytest.mark.parametrize("stages", [{}, {"chat_template_stage": {}, "tokenize_stage": {}}])
async def test_a_prompt_that_is_too_long_is_shortened(stages):
    engine = SimulatedEngine(engine_kwargs={"max_model_len": 200})
    long = {"sampling_params": {"temperature": 0.0, "max_tokens": 16}}
    rows = [chat("x" * 1000, **long), {"prompt": "x" * 1000, "messages": None, **long}]
    if stages:  # such rows must be conversations
        rows.pop()
    kept = await all_of(processor(engine, should_continue_on_error=True, **stages)(rows))
    assert {row["error"]["type"] for row in kept} == {"context_length_exceeded"}
    cut = await all_of(processor(engine, on_length="raise,truncate", **stages)(rows))
    assert all(130 < row["num_input_tokens"] <= 184 for row in cut)
    if stages:
        assert cut[0]["prompt"] == "x" * 1000 + "\n"


async def test_the_model_is_told_what_was_wrong_with_its_json(make_engine):
    rows = [chat("q", id=1, sampling_params={"structured_outputs": {"json": SCHEMA}})]
    engine = make_engine(lambda text: {"a": 1} if text.startswith("That answer") else '{"a": "x"}')
    (kept,) = await all_of(processor(engine)(rows))
    assert kept["generated_text"] == '{"a": "x"}'
    (row,) = await all_of(processor(engine, on_invalid_json="retry")(rows))
    assert row["generated_text"] == '{"a": 1}'
    assert [message["role"] for message in engine.requests[-1].messages] == [
        "user",
        "assistant",
        "user",
    ]
    assert "a: must be an integer" in engine.asked[-1]
    stubborn = make_engine(lambda text: "no json")
    config = {"max_attempts": 2, "should_continue_on_error": True, "on_invalid_json": "retry"}
    (row,) = await all_of(processor(stubborn, **config)(rows))
    assert (row["id"], row["error"]["type"], len(stubborn.asked)) == (1, "invalid_json", 2)
    assert "the answer is no JSON" in row["error"]["message"]


async def test_what_follows_no_schema_is_not_asked_again(make_engine):
    engine = make_engine(lambda text: "no json")
    rows = [chat("a"), chat("b", sampling_params={"structured_outputs": {"regex": ".*"}})]
    assert len(await all_of(processor(engine, on_invalid_json="retry")(rows))) == 2
    call = Delta(
        finish_reason="tool_calls", usage=Usage(1, 1), tool_calls=(ToolCallPart(0, "{}", "1", "f"),)
    )
    calling = make_engine(lambda text: call)
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    row = chat("a", tools=tools, sampling_params={"structured_outputs": {"json": SCHEMA}})
    (found,) = await all_of(processor(calling, on_invalid_json="retry")([row]))
    assert (found["finish_reason"], len(calling.asked)) == ("tool_calls", 1)


def test_wrong_policies_are_named():
    with pytest.raises(ConfigError, match="on_length: must be keep, raise or truncate, not 'cut'"):
        processor(SimulatedEngine(), on_length="cut")
    with pytest.raises(ConfigError, match="on_invalid_json"):
        processor(SimulatedEngine(), on_invalid_json="again")
    with pytest.raises(ConfigError, match="on_length: has no meaning for the task 'embed'"):
        processor(SimulatedEngine(), task_type="embed", on_length="raise")
    with pytest.raises(ConfigError, match="on_length: has no meaning for the task 'score'"):
        processor(SimulatedEngine(), task_type="score", on_length="truncate")
