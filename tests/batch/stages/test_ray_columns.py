"""The columns that `ray.data.llm` has, where they are asked for."""

import json
from typing import Any

import pytest

import penstock
from penstock.batch import OpenVINOEngineProcessorConfig, build_processor
from penstock.batch.stages.ray_columns import logprobs_by_id
from penstock.compat import ray as compat
from penstock.engines.simulated.engine import SimulatedEngine
from penstock.types import ChatRequest, Delta, TokenLogprob, Usage

GREEDY = {"temperature": 0.0, "max_tokens": 8}
ADDED = {
    *("params", "metrics", "prompt_token_ids", "prompt_logprobs", "request_id", "batch_uuid"),
    "__inference_error__",
}


def processor(*functions, **fields):
    fields = {"engine": SimulatedEngine(), **fields}
    return build_processor(compat.OpenVINOEngineProcessorConfig(**fields), *functions)


async def all_of(stream):
    return [row async for row in stream]


def asked(text, **params):
    message = {"role": "user", "content": text}
    return {"messages": [message], "sampling_params": {**GREEDY, **params}}


async def test_they_are_off_unless_asked_for():
    config = OpenVINOEngineProcessorConfig(engine=SimulatedEngine())
    (row,) = await all_of(build_processor(config)([asked("a")]))
    assert not row.keys() & ADDED


async def test_an_answer_has_all_of_them():
    first, second = await all_of(processor()([asked("ab"), {"prompt": "abc"}]))
    assert first.keys() >= ADDED
    assert sorted([first["request_id"], second["request_id"]]) == [0, 1]
    assert first["embeddings"] is None
    assert first["batch_uuid"] == second["batch_uuid"] != ""
    assert first["__inference_error__"] == ""
    assert "max_tokens=8" in first["params"]
    assert first["metrics"]["num_generation_tokens"] == 8
    assert first["metrics"]["arrival_time"] > 0
    assert len(first["prompt_token_ids"]) == first["num_input_tokens"]
    assert second["prompt"] == "abc"
    assert second["prompt_token_ids"] == list(b"abc")


async def test_the_prompt_is_what_the_template_made():
    (row,) = await all_of(processor(engine=None, model_source="demo")([asked("ab")]))
    assert row["prompt"].endswith("<|im_start|>user\nab<|im_end|>\n<|im_start|>assistant\n")
    (plain,) = await all_of(
        build_processor(OpenVINOEngineProcessorConfig(model_source="demo"))([asked("ab")])
    )
    assert plain["prompt"] is None
    assert plain["generated_text"] == row["generated_text"]


class Noting(SimulatedEngine):
    """An engine that notes what it is asked."""

    def __init__(self):
        super().__init__()
        self.asked: list[Any] = []

    async def generate(self, request):
        self.asked.append(request)
        yield [Delta(text="a", token_ids=(97,), finish_reason="stop", usage=Usage(1, 1))]


IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}


@pytest.mark.parametrize("tokenizes", [True, {}])
async def test_a_conversation_takes_the_place_of_the_prompt_that_its_row_came_with(tokenizes):
    engine = Noting()
    text = asked("ab")
    image = {**text, "messages": [{"role": "user", "content": [IMAGE]}]}
    tools = {**text, "tools": [{"type": "function", "function": {"name": "f"}}]}
    own = {"prompt": "another", "tokenized_prompt": list(b"another")}
    made = processor(engine=engine, tokenize_stage=tokenizes)
    found = await all_of(made([{**row, **own} for row in (text, image, tools)]))
    assert [row["prompt"] for row in found] == ["ab\n", "", ""]
    filled, *conversations = sorted(engine.asked, key=lambda one: type(one) is ChatRequest)
    assert filled.prompt == ("ab\n" if tokenizes is True else list(b"ab\n"))
    assert sorted(str(one.messages) for one in conversations) == sorted(
        str(row["messages"]) for row in (image, tools)
    )


async def test_log_probabilities_are_by_token_id_as_vllm_has_them():
    rows = [asked("ab", logprobs=1, prompt_logprobs=1)]
    (row,) = await all_of(processor(engine=None, model_source="demo")(rows))
    first = row["logprobs"][0][row["generated_tokens"][0]]
    assert first.keys() == {"logprob", "rank", "decoded_token"}
    assert first["rank"] == 1
    (alone,) = await all_of(processor(engine=None, model_source="demo")([asked("ab", logprobs=1)]))
    chosen = zip(alone["generated_tokens"], alone["logprobs"], strict=True)
    assert [by_id[token]["rank"] for token, by_id in chosen] == [1] * 8
    assert row["prompt_logprobs"][0] is None
    assert row["prompt_token_ids"][3] in row["prompt_logprobs"][3]
    assert len(row["prompt_logprobs"]) == row["num_input_tokens"]


@pytest.mark.parametrize(("id", "key"), [(7, 7), (None, "a")])
def test_an_engine_without_ids_has_them_by_text(id, key):
    token = TokenLogprob("a", -1.0, (("a", -1.0), ("b", -2.0)), id, top_ids=(7, 8) if id else ())
    made = logprobs_by_id([token])
    assert made is not None
    found = made[0]
    assert found is not None
    assert found[key] == {"logprob": -1.0, "rank": 1, "decoded_token": "a"}
    assert [one["decoded_token"] for one in found.values()] == ["a", "b"]


class Thinks(SimulatedEngine):
    """An engine that does not tell its thoughts from its answer."""

    async def generate(self, request):
        tokens = tuple(b"<think>2+2</think>\nFour")
        made: Any = {"text": bytes(tokens).decode(), "token_ids": tokens, "finish_reason": "stop"}
        usage = Usage(1, request.n * len(tokens))
        yield [Delta(index=index, usage=usage, **made) for index in range(request.n)]


@pytest.mark.parametrize("own", [{}, {"detokenize_stage": {"batch_size": 2}}])
@pytest.mark.parametrize("as_ray", [True, False])
@pytest.mark.parametrize("n", [1, 2])
async def test_thoughts_stay_in_rays_text_and_leave_ours(as_ray, own, n):
    config = OpenVINOEngineProcessorConfig(engine=Thinks(), ray_columns=as_ray, **own)
    (row,) = await all_of(build_processor(config)([asked("a", n=n)]))
    for one in (row, *(row["outputs"] or ())):
        assert one["reasoning_content"] == "2+2"
        assert one["generated_text"] == ("<think>2+2</think>\nFour" if as_ray else "Four")


async def test_the_tokens_of_the_first_answer_are_counted():
    (row,) = await all_of(processor()([asked("a", n=2, temperature=1.0, seed=1)]))
    assert len(row["outputs"]) == 2
    assert row["num_generated_tokens"] == len(row["generated_tokens"]) == 8
    assert row["metrics"]["num_generation_tokens"] == 8


async def test_an_error_row_says_why_in_rays_column():
    rows = [asked("a"), {"id": 2}]
    made = processor(None, lambda row: {"x": row["generated_text"]}, should_continue_on_error=True)
    good, bad = await all_of(made(rows))
    assert good["__inference_error__"] == ""
    assert "messages" in bad["__inference_error__"]
    assert bad["status"] == "error"
    assert bad.keys() == good.keys() | {"id"}


async def test_vectors_have_them_too(make_engine):
    config = compat.OpenVINOEngineProcessorConfig(engine=SimulatedEngine(), task_type="embed")
    (row,) = await all_of(build_processor(config)([{"prompt": "ab"}]))
    assert row.keys() >= ADDED
    assert row["prompt_token_ids"] == list(b"ab")
    assert row["generated_text"] == ""
    assert row["embeddings"].dtype == "float32"
    assert row["embeddings"].ndim == 1
    plain = OpenVINOEngineProcessorConfig(engine=SimulatedEngine(), task_type="embed")
    (ours,) = await all_of(build_processor(plain)([{"prompt": "ab"}]))
    assert row["embeddings"].tolist() == pytest.approx(ours["embeddings"])


async def test_conversations_and_token_ids_are_embedded_as_ray_does():
    config = compat.OpenVINOEngineProcessorConfig(engine=SimulatedEngine(), task_type="embed")
    filled = {"prompt": "ab\n"}
    rows = [asked("ab"), filled, {"tokenized_prompt": list(b"ab\n")}]
    chat, text, ids = await all_of(build_processor(config)(rows))
    vectors = [one["embeddings"].tolist() for one in (chat, text, ids)]
    assert vectors[0] == vectors[1] == vectors[2]
    assert [row["prompt"] for row in (chat, text, ids)] == ["ab\n", "ab\n", ""]
    assert {tuple(row["prompt_token_ids"]) for row in (chat, text, ids)} == {tuple(b"ab\n")}
    plain = OpenVINOEngineProcessorConfig(engine=SimulatedEngine(), task_type="embed")
    assert "ChatTemplateStage" not in build_processor(plain).stages


def test_a_job_holds_them(tmp_path):
    output = tmp_path / "out.jsonl"
    penstock.run(
        [{"id": 1}],
        output,
        processor=processor(lambda row: asked("a", logprobs=1), engine=None, model_source="demo"),
    )
    (line,) = output.read_text().splitlines()
    row = json.loads(line)
    assert row.keys() >= ADDED
    assert list(row["logprobs"][0]) == [str(row["generated_tokens"][0])]


def test_the_older_name_of_the_builder():
    assert compat.build_llm_processor is build_processor
