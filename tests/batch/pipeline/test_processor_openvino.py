"""Processors on the real engine with the demo model."""

import json

import pytest

from penstock import Job
from penstock.batch import OpenVINOEngineProcessorConfig, build_processor
from penstock.demo import ADAPTERS, FIELDS, SCHEMA, tickets_path
from penstock.engines.openvino.engine import OpenVINOEngine
from penstock.engines.registry import engines

pytestmark = pytest.mark.slow

KWARGS = {"deterministic": True, "kv_cache_memory_bytes": 1 << 28}


def tickets(count):
    with tickets_path().open(encoding="utf-8") as file:
        return [json.loads(next(file)) for _ in range(count)]


def chat(row, text=None, **params):
    messages = [{"role": "user", "content": text or row["ticket"]}]
    return {
        "messages": messages,
        "sampling_params": {"temperature": 0.0, "max_tokens": 100, **params},
    }


def config(**options):
    return OpenVINOEngineProcessorConfig(model_source="demo", engine_kwargs=KWARGS, **options)


async def all_of(stream):
    return [row async for row in stream]


async def test_labels_are_those_of_a_job(tmp_path):
    rows = tickets(60)
    schema = {"structured_outputs": {"json": SCHEMA}}
    processor = build_processor(
        config(), lambda row: chat(row, **schema), lambda row: json.loads(row["generated_text"])
    )
    found = await all_of(processor(rows))
    right = sum(
        all(row[name] == gold[name] for name in FIELDS)
        for row, gold in zip(found, rows, strict=True)
    )
    assert right >= 57
    plain = [{"ticket": row["ticket"]} for row in rows]
    job = Job(
        plain,
        model="demo",
        engine_kwargs=KWARGS,
        prompt="{ticket}",
        schema=SCHEMA,
        max_tokens=100,
        progress=False,
    )
    assert found == [{name: row[name] for name in FIELDS} for row in (await job.arun()).rows()]


async def test_stages_of_their_own_give_the_same():
    rows = tickets(20)
    own = {
        "chat_template_stage": {"batch_size": 8},
        "tokenize_stage": {"batch_size": 8},
        "detokenize_stage": {},
    }
    together, apart = (build_processor(config(**options), chat) for options in ({}, own))
    names = ("generated_text", "generated_tokens", "num_input_tokens", "finish_reason")
    found = await all_of(apart(rows))
    assert [[row[name] for name in names] for row in found] == [
        [row[name] for name in names] for row in await all_of(together(rows))
    ]
    assert all(len(row["tokenized_prompt"]) == row["num_input_tokens"] for row in found)


async def test_adapters_probabilities_and_several_answers():
    rows = tickets(8)
    adapter = next(iter(ADAPTERS))
    processor = build_processor(
        config(),
        lambda row: {
            **chat(row, n=2, logprobs=0, seed=1),
            "model": adapter if row["id"] == rows[0]["id"] else None,
        },
    )
    found = await all_of(processor(rows))
    assert all(
        len(row["outputs"]) == 2 and len(row["logprobs"]) == len(row["generated_tokens"])
        for row in found
    )
    base = await all_of(build_processor(config(), chat)(rows[:1]))
    assert found[0]["generated_text"] != base[0]["generated_text"]


async def test_the_second_processor_goes_on_with_the_conversation_and_finds_it_cached():
    rows = tickets(40)
    first = build_processor(
        config(engine="demo"), chat, lambda row: {**row, "said": row["generated_text"]}
    )

    def follow(row):
        turns = [*row["messages"], {"role": "assistant", "content": row["said"]}]
        return {"messages": [*turns, {"role": "user", "content": "Repeat the text."}]}

    second = build_processor(config(engine="demo"), follow)
    answers = second(first(rows))
    found = await all_of(answers)
    assert list(engines()) == ["demo"]
    share = sum(row["num_cached_tokens"] for row in found) / sum(
        row["num_input_tokens"] for row in found
    )
    assert share > 0.3
    assert answers.counts.cached_share == share
    await engines().stop()


async def test_an_engine_of_the_callers_own(tmp_path):
    engine = OpenVINOEngine("demo", engine_kwargs=KWARGS)
    await engine.start()
    processor = build_processor(
        OpenVINOEngineProcessorConfig(engine=engine), chat, lambda row: {"t": row["generated_text"]}
    )
    result = await Job(
        tickets(30), tmp_path / "out.parquet", processor=processor, progress=False
    ).arun()
    assert result.table().num_rows == 30
    assert (await all_of(processor(tickets(30)))) == result.table().to_pylist()
    await engine.check_health()
    await engine.stop()
