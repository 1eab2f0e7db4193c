"""Template, tokenizer and detokenizer as stages of their own give what the engine does in its own
pass.
"""

import asyncio
from typing import Any

import pytest

from penstock.batch import OpenVINOEngineProcessorConfig, build_processor
from penstock.batch.stages.text import Texts
from penstock.engines.registry import EngineSource
from penstock.engines.simulated.engine import SimulatedEngine
from penstock.types import TokenizerInfo

NAMES = ["ChatTemplateStage", "TokenizeStage", "OpenVINOEngineStage", "DetokenizeStage"]
OWN: dict[str, Any] = {
    "chat_template_stage": {"batch_size": 4},
    "tokenize_stage": {"concurrency": 2},
    "detokenize_stage": {"batch_size": 2},
}


def rows(count=20):
    params = {"temperature": 0.0, "max_tokens": 8}
    return [
        {"id": n, "messages": [{"role": "user", "content": f"text {n}"}], "sampling_params": params}
        for n in range(count)
    ]


def processor(**config):
    return build_processor(OpenVINOEngineProcessorConfig(engine=SimulatedEngine(), **config))


async def all_of(stream):
    return [row async for row in stream]


async def test_stages_of_their_own_give_the_same_and_their_columns():
    apart, together = processor(**OWN), processor()
    assert apart.list_stage_names() == together.list_stage_names() == NAMES
    assert [stage.fn is None for stage in together.stages.values()] == [True, True, False, True]
    assert all(stage.fn is not None for stage in apart.stages.values())
    found, expected = await all_of(apart(rows())), await all_of(together(rows()))
    assert [row["id"] for row in found] == list(range(20))
    assert [row["generated_text"] for row in found] == [row["generated_text"] for row in expected]
    assert found[3]["prompt"] == "text 3\n"
    assert found[3]["tokenized_prompt"] == list(b"text 3\n")


@pytest.mark.parametrize("own", [{}, OWN])
async def test_rows_come_one_to_one_and_in_order(own):
    """From the engine alone and from each stage, though they finish in another order."""
    engine = SimulatedEngine(engine_kwargs={"output_tokens": 100})
    given = [
        {**row, "sampling_params": {"temperature": 0.0, "max_tokens": 1 + row["id"] * 7 % 13}}
        for row in rows(200)
    ]
    config = OpenVINOEngineProcessorConfig(engine=engine, **own)
    finished = [row["id"] async for row in build_processor(config)(given, order="done")]
    found = await all_of(build_processor(config)(given))
    assert finished != sorted(finished) == list(range(200))
    assert [row["id"] for row in found] == list(range(200))
    assert [row["num_generated_tokens"] for row in found] == [1 + n * 7 % 13 for n in range(200)]
    assert [row["num_input_tokens"] for row in found] == [len(f"text {n}\n") for n in range(200)]


async def test_stages_can_be_left_out():
    plain = processor(chat_template_stage=False, tokenize_stage=False, detokenize_stage=False)
    assert plain.list_stage_names() == ["OpenVINOEngineStage"]
    asked = [
        {"prompt": "a", "sampling_params": {"max_tokens": 4, "detokenize": wanted}}
        for wanted in (True, False)
    ]
    found = await all_of(plain(asked))
    assert [row["generated_text"] and len(row["generated_text"]) for row in found] == [4, None]
    assert [len(row["generated_tokens"]) for row in found] == [4, 4]
    older = processor(apply_chat_template=False, tokenize=False, detokenize=True, has_image=True)
    assert older.list_stage_names() == [
        "PrepareMultimodalStage",
        "OpenVINOEngineStage",
        "DetokenizeStage",
    ]


async def test_without_a_stage_for_it_the_engine_still_gives_texts():
    (row,) = await all_of(processor(detokenize_stage=False)(rows(1)))
    assert len(row["generated_text"]) == 8


async def test_each_of_several_answers_gets_its_text():
    asked = [{**row, "sampling_params": {"n": 3, "seed": 1, "max_tokens": 8}} for row in rows(1)]
    (row,), (expected,) = (
        await all_of(processor(detokenize_stage={})(asked)),
        await all_of(processor()(asked)),
    )
    assert row["outputs"] == expected["outputs"]
    assert len({output["generated_text"] for output in row["outputs"]}) == 3


async def test_special_tokens_are_left_out_and_what_looks_like_one_stays():
    class Named(SimulatedEngine):
        async def answer(self, task, request):
            if task == "tokenizer_info":
                return TokenizerInfo(special_tokens={"bos_token": "<s>", "eos_token": "\4"})
            return await super().answer(task, request)

    worker = Texts(EngineSource("", None, shared=Named()))
    await worker.start()
    texts = [
        (await worker.process({"generated_tokens": list(tokens)}))["generated_text"]
        for tokens in (b"<s>old</s>\4", b"\4", b"")
    ]
    await worker.stop()
    assert texts == ["<s>old</s>", "", ""]


async def test_a_row_keeps_its_own_prompt():
    asked = [{**row, "prompt": "a question"} for row in rows(1)]
    (row,) = await all_of(processor()(asked))
    assert row["prompt"] == "a question"


async def test_token_ids_are_those_of_the_filled_template():
    tokens = processor(tokenize_stage={})
    found = await all_of(
        tokens([*rows(1), {"id": 1, "prompt": "as it is", "sampling_params": {"max_tokens": 4}}])
    )
    assert [row["prompt"] for row in found] == ["text 0\n", "as it is"]
    assert [bytes(row["tokenized_prompt"]) for row in found] == [b"text 0\n", b"as it is"]
    assert found[0]["generated_text"] == (await all_of(processor()(rows(1))))[0]["generated_text"]


class Begins(SimulatedEngine):
    """An engine whose tokenizer begins a text with a token, unless it is asked not to."""

    async def encoded(self, text, special_tokens, names):
        tokens = await super().encoded(text, special_tokens, names)
        if special_tokens:
            tokens.ids.insert(0, 1)
        return tokens


@pytest.mark.parametrize("templated", [True, False])
async def test_a_raw_prompt_begins_with_the_models_token(templated):
    engine = Begins()
    config = OpenVINOEngineProcessorConfig(
        engine=engine, chat_template_stage=templated, tokenize_stage={}
    )
    raw = {"prompt": "ab", "sampling_params": {"max_tokens": 4}}
    found = await all_of(build_processor(config)([raw, *(rows(1) if templated else ())]))
    assert [row["tokenized_prompt"] for row in found] == [
        [1, *b"ab"],
        *([[*b"text 0\n"]] if templated else ()),
    ]


@pytest.mark.parametrize("own", [{}, {"batch_size": 8}])
async def test_a_template_of_the_users(own):
    stage = {
        "chat_template": "{{ messages[0]['content'] }}{{ mark }}",
        "chat_template_kwargs": {"mark": "!"},
        **own,
    }
    engine = SimulatedEngine()
    await engine.start()
    config = OpenVINOEngineProcessorConfig(engine=engine, chat_template_stage=stage)
    (row,) = await all_of(build_processor(config)(rows(1)))
    assert row["num_input_tokens"] == len("text 0!")
    await engine.stop()


@pytest.mark.parametrize("own", [{}, OWN])
async def test_a_last_message_of_the_assistant_is_continued(own):
    (row,) = rows(1)
    row["messages"].append({"role": "assistant", "content": "it is "})
    (found,) = await all_of(processor(**own)([row]))
    assert found["num_input_tokens"] == len("text 0\nit is ")


async def test_variables_of_the_template_for_all_rows_and_for_one():
    """`builder_kwargs`, before them the stage's own, and before both the row's."""
    template = "{{ messages[0]['content'] }}{{ a }}{{ b }}{{ c }}"
    stage = {"chat_template": template, "chat_template_kwargs": {"b": 22}}
    config = OpenVINOEngineProcessorConfig(
        engine=SimulatedEngine(), **{**OWN, "chat_template_stage": stage}
    )
    made = build_processor(
        config, builder_kwargs={"chat_template_kwargs": {"a": 1, "b": 2, "c": 3}}
    )
    given = [{**row, "chat_template_kwargs": {"c": 33}} for row in rows(1)]
    assert [row["prompt"] for row in await all_of(made(given))] == ["text 012233"]
    plain = OpenVINOEngineProcessorConfig(engine=SimulatedEngine(), chat_template=template)
    made = build_processor(plain, builder_kwargs={"chat_template_kwargs": {"a": "x" * 50}})
    assert [row["num_input_tokens"] for row in await all_of(made(rows(1)))] == [len("text 0") + 50]


async def test_how_many_workers_and_rows_each_stage_has():
    config = {
        **OWN,
        "prepare_multimodal_stage": {"num_cpus": 2, "memory": 1e9},
        "batch_size": 16,
        "concurrency": 3,
    }
    placed = {name: stage.map_batches_kwargs for name, stage in processor(**config).stages.items()}
    assert placed == {
        "PrepareMultimodalStage": {
            "batch_size": 16,
            "concurrency": 3,
            "num_cpus": 2,
            "memory": 1e9,
        },
        "ChatTemplateStage": {"batch_size": 4, "concurrency": 3},
        "TokenizeStage": {"batch_size": 16, "concurrency": 2},
        "OpenVINOEngineStage": {"batch_size": 16, "concurrency": 3},
        "DetokenizeStage": {"batch_size": 2, "concurrency": 3},
    }


async def test_a_row_that_cannot_be_templated_spoils_no_other():
    bad = rows(4)
    bad[1]["messages"] = [{"role": "nobody", "content": "x"}]
    bad[2] = {"id": 2}
    found = await all_of(processor(should_continue_on_error=True, **OWN)(bad))
    assert [row["status"] for row in found] == ["ok", "error", "error", "ok"]
    assert [row["error"]["stage"] for row in found[1:3]] == ["ChatTemplateStage"] * 2


async def test_cancellation():
    engine = SimulatedEngine(engine_kwargs={"hang_rate": 1.0})
    await engine.start()
    config = OpenVINOEngineProcessorConfig(engine=engine, **OWN)
    task = asyncio.create_task(all_of(build_processor(config)(rows(4))))
    while engine.running < 4:  # noqa: ASYNC110
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert engine.running == 0
    await engine.stop()
