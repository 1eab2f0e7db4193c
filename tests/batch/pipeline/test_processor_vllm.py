"""Processors on real vLLM: what users of `ray.data.llm` ask of it, with the demo model."""

import json
from typing import Any

import pytest
import pytest_asyncio

from penstock.batch import build_processor, vLLMEngineProcessorConfig
from penstock.demo import ADAPTERS, FIELDS, SCHEMA, adapter_path, expected, model_path, tickets_path
from penstock.engines.registry import engines
from torch_models import classifier, picture, recording, speech_model, vision_model

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.filterwarnings("ignore"),  # vLLM's own are not ours to mend
    pytest.mark.asyncio(loop_scope="module"),
]

PLAIN = {
    "dtype": "float32",
    "enforce_eager": True,
    "kv_cache_memory_bytes": 64 << 20,
    "block_size": 32,
}
POOLING = {**PLAIN, "runner": "pooling"}
TEXTS = ["My Solara 77 arrived broken.", "Where is my invoice?", "My Solara 77 arrived broken."]


def tickets(count):
    with tickets_path().open(encoding="utf-8") as file:
        return [json.loads(next(file)) for _ in range(count)]


def ask(row, **params):
    messages = [{"role": "user", "content": row["ticket"]}]
    return {
        "messages": messages,
        "sampling_params": {"temperature": 0.0, "max_tokens": 100, **params},
    }


def generating(**fields):
    """A processor's configuration on the one engine of the tests that generate."""
    return vLLMEngineProcessorConfig(
        model_source="demo", engine="vllm", engine_kwargs={"max_num_seqs": 32}, **fields
    )


async def all_of(stream):
    return [row async for row in stream]


@pytest_asyncio.fixture(scope="module", loop_scope="module", autouse=True)
async def engines_end_with_the_tests():
    yield
    await engines().stop()


async def test_structured_answers_to_conversations():
    made = build_processor(generating(), lambda row: ask(row, structured_outputs={"json": SCHEMA}))
    rows = tickets(60)
    found = await all_of(made(rows))
    answers = [json.loads(row["generated_text"]) for row in found]
    right = sum(
        all(said[name] == row[name] for name in FIELDS)
        for said, row in zip(answers, rows, strict=True)
    )
    assert right >= 57
    assert all(row["finish_reason"] == "stop" and row["num_generated_tokens"] > 0 for row in found)
    assert all(len(row["generated_tokens"]) == row["num_generated_tokens"] for row in found)


async def test_stages_of_their_own_give_the_same():
    rows = tickets(20)
    own = {
        "chat_template_stage": {"batch_size": 8},
        "tokenize_stage": {"batch_size": 8},
        "detokenize_stage": {},
    }
    names = ("generated_text", "generated_tokens", "num_input_tokens", "finish_reason")
    together, apart = [
        await all_of(build_processor(generating(**options), ask)(rows)) for options in ({}, own)
    ]
    assert [[row[name] for name in names] for row in apart] == [
        [row[name] for name in names] for row in together
    ]


async def test_an_adapter_for_each_row(tmp_path):
    for name in ADAPTERS:
        (tmp_path / name).symlink_to(adapter_path(name))
    names = [None, *ADAPTERS, "nobody"]
    rows = [{**row, "adapter": name} for row in tickets(20) for name in names]
    made = build_processor(
        generating(dynamic_lora_loading_path=str(tmp_path), should_continue_on_error=True),
        lambda row: {**ask(row), "model": row["adapter"]},
    )
    found = await all_of(made(rows))
    assert {row["error"]["type"] for row in found if row["adapter"] == "nobody"} == {
        "model_not_found"
    }
    right = dict.fromkeys(names, 0)
    for row in found:
        if row["adapter"] != "nobody":
            right[row["adapter"]] += row["generated_text"] == expected(row, row["adapter"])
    assert min(right[name] for name in names[:-1]) >= 18, right


async def test_several_answers_their_probabilities_and_errors():
    long = {"id": -1, "ticket": "word " * 5000}
    rows = [*tickets(3), long]
    made = build_processor(
        generating(should_continue_on_error=True),
        lambda row: ask(row, n=2, logprobs=1, seed=1, temperature=1.0),
    )
    *good, bad = await all_of(made(rows))
    for row in good:
        assert len(row["outputs"]) == 2
        assert len(row["logprobs"]) == len(row["generated_tokens"])
    assert (bad["error"]["type"], bad["error"]["stage"]) == (
        "context_length_exceeded",
        "vLLMEngineStage",
    )
    assert bad.keys() == good[0].keys()
    cut = build_processor(generating(on_length="truncate"), lambda row: ask(row, max_tokens=4))
    assert (await all_of(cut([long])))[0]["num_generated_tokens"] == 4


async def test_the_second_processor_finds_the_first_conversation_cached():
    first = build_processor(generating(), ask, lambda row: {**row, "said": row["generated_text"]})

    def follow(row):
        turns = [*row["messages"], {"role": "assistant", "content": row["said"]}]
        return {"messages": [*turns, {"role": "user", "content": "Repeat the text."}]}

    found = await all_of(build_processor(generating(), follow)(first(tickets(40))))
    assert list(engines()) == ["vllm"]
    share = sum(row["num_cached_tokens"] for row in found) / sum(
        row["num_input_tokens"] for row in found
    )
    assert share > 0.3


async def test_embeddings_and_scores():
    source = str(model_path("huggingface"))
    shared: dict[str, Any] = {
        "model_source": source,
        "engine": "vectors",
        "engine_kwargs": {**POOLING, "convert": "embed"},
    }
    embed = build_processor(vLLMEngineProcessorConfig(task_type="embed", **shared))
    first, second, third = await all_of(embed([{"prompt": text} for text in TEXTS]))
    assert first["embeddings"] == pytest.approx(third["embeddings"], abs=1e-4)
    assert first["embeddings"] != pytest.approx(second["embeddings"], abs=1e-3)
    score = build_processor(vLLMEngineProcessorConfig(task_type="score", **shared))
    pairs = [{"text_1": TEXTS[0], "text_2": text} for text in TEXTS]
    scores = [row["score"] for row in await all_of(score(pairs))]
    assert scores[0] == scores[2] == pytest.approx(1.0, abs=1e-3)
    assert scores[1] < scores[0]


async def test_classes(tmp_path):
    classifier(tmp_path, ["calm", "angry", "glad"])
    config = vLLMEngineProcessorConfig(
        model_source=str(tmp_path), engine_kwargs=PLAIN, task_type="classify", ray_columns=True
    )
    found = await all_of(build_processor(config)([{"prompt": text} for text in TEXTS]))
    for row in found:
        assert sum(row["probabilities"]) == pytest.approx(1.0, abs=1e-4)
        assert (
            row["label"]
            == ["calm", "angry", "glad"][row["probabilities"].index(max(row["probabilities"]))]
        )
    assert found[0]["label"] == found[2]["label"]


async def test_images_and_one_that_is_damaged(tmp_path):
    vision_model(tmp_path)
    (tmp_path / "red.png").write_bytes(picture((255, 0, 0)))
    config = vLLMEngineProcessorConfig(
        model_source=str(tmp_path),
        engine_kwargs=PLAIN,
        prepare_multimodal_stage=True,
        should_continue_on_error=True,
    )

    def show(row):
        parts = [{"type": "image", "image": row["image"]}, {"type": "text", "text": "What is it?"}]
        params = {"temperature": 0.0, "max_tokens": 8, "logprobs": 0, "ignore_eos": True}
        return {"messages": [{"role": "user", "content": parts}], "sampling_params": params}

    sources = [
        str(tmp_path / "red.png"),
        picture((255, 0, 0)),
        picture((0, 0, 255)),
        picture((9, 9, 9))[:60],
    ]
    found = await all_of(build_processor(config, show)([{"image": image} for image in sources]))
    first, same, other, damaged = found
    assert first["num_input_tokens"] > 8  # which an image takes
    assert first["logprobs"] == same["logprobs"] != other["logprobs"]
    assert (damaged["status"], damaged["error"]["stage"]) == ("error", "PrepareMultimodalStage")


async def test_speech(tmp_path):
    model, _ = speech_model(tmp_path)
    model.save_pretrained(tmp_path)
    config = vLLMEngineProcessorConfig(
        model_source=str(tmp_path),
        engine_kwargs=PLAIN,
        task_type="transcribe",
        should_continue_on_error=True,
    )
    rows = [
        {"audio": recording(), "language": "en"},
        {"audio": b"no sound at all", "language": "en"},
    ]
    heard, noise = await all_of(build_processor(config)(rows))
    assert heard["transcription"] == heard["generated_text"] != ""
    assert noise["error"]["stage"] == "vLLMEngineStage"
