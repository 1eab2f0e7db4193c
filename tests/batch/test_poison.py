"""A mix of everything that goes wrong: every row is accounted for, and the others are as in a clean
run.
"""

import json

import pyarrow.parquet as pq
import pytest

import penstock
from penstock.batch import OpenVINOEngineProcessorConfig, build_processor
from penstock.engines.simulated.engine import SimulatedEngine

PARAMS = {"temperature": 0.0, "max_tokens": 8}
POISONS = {
    "over-long": ("OpenVINOEngineStage", "context_length_exceeded"),
    "bad schema": ("OpenVINOEngineStage", "invalid_request_error"),
    "missing column": ("preprocess", "user_code_error"),
    "unreachable image": ("PrepareMultimodalStage", "invalid_request_error"),
    "user code": ("postprocess", "user_code_error"),
}


def rows(poisoned):
    kinds = list(POISONS)
    found = []
    for number in range(1000):
        row = {"id": number, "text": f"text {number}", "poison": None}
        if poisoned and number % 100 == 50:
            row["poison"] = kinds[number // 100 % len(kinds)]
        found.append(row)
    return found


def preprocess(row):
    poison = row["poison"]
    if poison == "missing column":
        return {"prompt": row["absent"]}
    text = row["text"] * (1000 if poison == "over-long" else 1)
    content = [{"type": "text", "text": text}]
    if poison == "unreachable image":
        content.append({"type": "image_url", "image_url": {"url": "http://127.0.0.1:1/x.png"}})
    params: dict = dict(PARAMS)
    if poison == "bad schema":
        params["structured_outputs"] = {"json": {"type": "no such type"}}
    return {"messages": [{"role": "user", "content": content}], "sampling_params": params}


def postprocess(row):
    if row["poison"] == "user code":
        raise LookupError("a fault of the user's")
    return {"id": row["id"], "answer": row["generated_text"]}


async def run(poisoned, output):
    """As a stream where there is no output, else as a job."""
    engine = SimulatedEngine(engine_kwargs={"max_model_len": 2000})
    config = OpenVINOEngineProcessorConfig(
        engine=engine, prepare_multimodal_stage=True, should_continue_on_error=True
    )
    processor = build_processor(config, preprocess, postprocess)
    if output is not None:
        counts = (await penstock.arun(rows(poisoned), output, processor=processor)).counts
        return pq.read_table(output).to_pylist(), counts
    stream = processor(rows(poisoned))
    return [row async for row in stream], stream.counts


@pytest.mark.parametrize("job", [False, True])
@pytest.mark.parametrize("concurrency", [1, 2, 8, 64, 256])
async def test_rows_that_kill_the_engine_cost_themselves_alone(tmp_path, job, concurrency):
    texts = [
        "fatal " * (number % 30 == concurrency % 30) + f"text {number}" for number in range(300)
    ]
    options = {"die_on": "fatal", "max_num_seqs": concurrency, "time_per_token_ms": 0.001}
    config = OpenVINOEngineProcessorConfig(
        engine=SimulatedEngine(engine_kwargs=options),
        should_continue_on_error=True,
        engine_kwargs={},
    )
    processor = build_processor(
        config, lambda row: {"prompt": row["text"], "sampling_params": PARAMS}
    )
    rows = [{"id": number, "text": text} for number, text in enumerate(texts)]
    if job:
        await penstock.arun(rows, tmp_path / "out.jsonl", processor=processor)
        found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    else:
        found = [row async for row in processor(rows)]
    bad = {row["id"]: row["error"]["type"] for row in found if row["status"] == "error"}
    assert bad == {number: "quarantined" for number, text in enumerate(texts) if "fatal" in text}
    assert [row["id"] for row in found] == list(range(300))
    assert len(bad) == 10


@pytest.mark.parametrize("job", [False, True])
async def test_poison_costs_only_its_own_rows(tmp_path, job):
    clean, _ = await run(poisoned=False, output=tmp_path / "clean.parquet" if job else None)
    found, counts = await run(poisoned=True, output=tmp_path / "found.parquet" if job else None)
    assert [row["id"] for row in found] == list(range(1000))
    bad = {row["id"]: row for row in found if row["status"] == "error"}
    assert sorted(bad) == list(range(50, 1000, 100))
    columns = {"id", "text", "poison", "answer", "status", "error"}
    assert all(row.keys() == columns for row in found)
    assert {row["answer"] for row in bad.values()} == {None}
    schema = ("type", "stage", "retryable", "message", "status", "body")
    for row in bad.values():
        assert tuple(row["error"]) == schema
        stage, kind = POISONS[row["poison"]]
        assert (row["error"]["stage"], row["error"]["type"]) == (stage, kind), row["error"]
    assert [row for row in found if row["id"] not in bad] == [
        row for row in clean if row["id"] not in bad
    ]
    assert (counts.rows, counts.failed) == (1000, 10)
    assert all(row["status"] == "ok" for row in clean)
