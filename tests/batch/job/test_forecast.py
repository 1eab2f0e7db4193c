import json
from typing import Any

import pytest

from penstock import Job
from penstock.batch import (
    OpenVINOEngineProcessorConfig,
    Processor,
    ProcessorConfig,
    StatefulStage,
    build_processor,
)
from penstock.batch.job.forecast import described
from penstock.engines.simulated.engine import SimulatedEngine
from penstock.errors import ConfigError


@pytest.fixture
def source(tmp_path):
    rows = [
        json.dumps({"text": "x" * (500 if n % 10 == 0 else 10) + f" {n % 80}"}) for n in range(100)
    ]
    path = tmp_path / "in.jsonl"
    path.write_text("\n".join([*rows, "{", json.dumps({"other": 1})]) + "\n")
    return path


ENGINE = {"max_model_len": 300, "output_tokens": 20}


async def test_what_a_job_will_be_like(source):
    job = Job(source, prompt="{text}", max_tokens=30, model="simulated", engine_kwargs=ENGINE)
    found = await job.aplan(trial=100)
    assert (found.rows, found.read) == (102, 102)
    assert found.unreadable == {"input_error": 1, "invalid_request_error": 1}
    assert found.duplicates == 20
    assert found.over_long == 8
    assert (found.longest_prompt, found.context_length) == (504, 300)
    assert found.failed == {"context_length_exceeded": 8}
    counts = (await job.arun()).counts
    assert (found.prompt_tokens, found.completion_tokens) == (
        counts.prompt_tokens,
        counts.completion_tokens,
    )
    assert counts.completion_tokens == 72 * 20
    assert found.seconds is not None
    text = described(found)
    for part in (
        "102 rows",
        "1 × input_error",
        "20 with the request",
        "about 8 too long",
        "rows showed",
    ):
        assert part in text


async def test_rows_that_all_fail_show_no_speed(source):
    hangs = {"engine_kwargs": {"hang_rate": 1.0}, "row_timeout": 0.01}
    options: Any = {"prompt": "{text}", "model": "simulated", **hangs}
    found = await Job(source, **options).aplan(trial=3)
    assert found.failed == {"engine_timeout": 3}
    assert (found.tried, found.seconds, found.rows_per_second) == (3, None, None)
    assert "rows/s" not in described(found)


async def test_nothing_is_tried_or_written(source, tmp_path):
    engine = SimulatedEngine()
    found = await Job(source, tmp_path / "out.jsonl", prompt="{text}", engine=engine).aplan(trial=0)
    assert (found.tried, found.seconds, engine.requests_served) == (0, None, 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl"]


@pytest.mark.parametrize(
    "own", [{}, {"chat_template_stage": {}, "tokenize_stage": {}, "detokenize_stage": {}}]
)
@pytest.mark.parametrize("chat", [False, True])
async def test_a_processor(source, own, chat):
    def ask(row):
        asked = (
            {"messages": [{"role": "user", "content": row["text"]}]}
            if chat
            else {"prompt": row["text"]}
        )
        return {**asked, "sampling_params": {"temperature": 0, "max_tokens": 30}}

    if own and not chat:
        own = {**own, "chat_template_stage": False}
    engine = SimulatedEngine(engine_kwargs=ENGINE)
    config = OpenVINOEngineProcessorConfig(engine=engine, should_continue_on_error=True, **own)
    job = Job(source, processor=build_processor(config, ask))
    found = await job.aplan(trial=100)
    assert found.unreadable == {"input_error": 1, "user_code_error": 1}
    assert found.duplicates == 20
    assert (found.over_long, found.longest_prompt) == (8, 503 + chat)
    assert found.failed == {"context_length_exceeded": 8}
    counts = (await job.arun()).counts
    assert (found.prompt_tokens, found.completion_tokens) == (
        counts.prompt_tokens,
        counts.completion_tokens,
    )
    assert counts.completion_tokens == 72 * 20


async def test_prompts_that_are_cut_until_they_fit_count(source):
    engine = SimulatedEngine(engine_kwargs=ENGINE)
    job = Job(source, prompt="{text}", max_tokens=30, engine=engine, on_length="truncate")
    found = await job.aplan(trial=100)
    counts = (await job.arun()).counts
    assert (found.over_long, found.failed) == (8, {})
    assert found.completion_tokens == counts.completion_tokens == 80 * 20
    assert found.prompt_tokens is not None
    assert counts.prompt_tokens <= found.prompt_tokens <= 1.25 * counts.prompt_tokens


@pytest.mark.parametrize("trial", [32, 0])
async def test_sorted_data_is_sampled_evenly(tmp_path, trial):
    """The first half of the rows has short texts and answers, the second half long ones."""
    path = tmp_path / "in.jsonl"
    rows = [
        {
            "prompt": f"{n} ".ljust(10 if n < 100 else 200),
            "sampling_params": {"max_tokens": 5 if n < 100 else 100},
        }
        for n in range(200)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    config = OpenVINOEngineProcessorConfig(
        engine=SimulatedEngine(engine_kwargs={"output_tokens": 100})
    )
    job = Job(path, processor=build_processor(config))
    found = await job.aplan(trial=trial)
    counts = (await job.arun()).counts
    assert found.prompt_tokens == counts.prompt_tokens == 21_000
    assert counts.completion_tokens == 10_500
    assert trial == 0 or 0.6 < (found.completion_tokens or 0) / counts.completion_tokens < 1.4


async def test_a_processor_that_asks_no_engine(source):
    class Length:
        async def process(self, row):
            return {"length": len(row["text"])}

    processor = Processor(ProcessorConfig(should_continue_on_error=True), [StatefulStage(Length)])
    found = await Job(source, processor=processor).aplan()
    assert (found.rows, found.tried, found.counted, found.prompt_tokens) == (102, 32, 0, None)
    assert "tokens" not in described(found)


async def test_no_rows(tmp_path):
    (tmp_path / "in.jsonl").write_text("")
    found = await Job(tmp_path / "in.jsonl", prompt="{text}", model="simulated").aplan()
    assert (found.rows, found.tried) == (0, 0)
    assert described(found) == "0 rows"


def test_without_an_event_loop(source):
    assert Job(source, prompt="{text}", model="simulated", limit=5).plan().rows == 5


async def test_a_source_that_can_be_read_once_is_refused():
    for once in ("-", iter([{"text": "a"}])):
        with pytest.raises(ConfigError, match="source: can be read once only"):
            await Job(once, prompt="{text}", model="simulated").aplan()


@pytest.mark.parametrize("engine", ["openai-batch", "anthropic-batch"])
def test_a_batch_api_has_no_trial(engine, source):
    with pytest.raises(ConfigError, match=f"{engine} has no trial.*'remote'"):
        Job(source, prompt="{text}", engine=engine).plan()


@pytest.mark.parametrize("trial", [-1, 257])
def test_a_trial_has_a_bound(trial, source):
    with pytest.raises(ConfigError, match=f"trial: must be from 0 to 256, not {trial}"):
        Job(source, prompt="{text}", model="simulated").plan(trial=trial)
