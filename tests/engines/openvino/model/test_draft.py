"""Draft models: which are taken, and that they change no answer."""

import asyncio
import json
from itertools import islice

import pytest

from eagle_head import write_eagle_head
from penstock import demo
from penstock.engines.openvino import OpenVINOEngine
from penstock.engines.openvino.model.draft import check_draft
from penstock.engines.openvino.options import OpenVINOOptions
from penstock.engines.token_engine import GenerateRequest
from penstock.errors import EngineStartError, RequestError, UnsupportedError
from penstock.testing import answer, chat_request
from penstock.types import CompletionRequest, Sampling

EXACT = {
    "inference_precision": "f32",
    "kv_cache_precision": "f32",
    "properties": {"DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"},
}


def folder(path, marks="", layers=4):
    path.mkdir()
    (path / "openvino_model.xml").write_text(f"<net><rt_info>{marks}</rt_info></net>")
    (path / "config.json").write_text(json.dumps({"num_hidden_layers": layers}))
    return path


@pytest.fixture
def head(tmp_path):
    return folder(tmp_path / "head", '<eagle3_mode value="True" />')


def checked(draft, target, **options):
    check_draft(OpenVINOOptions(draft_model=str(draft), **options), target)


def test_a_draft_model_that_is_not_there_is_known_at_the_start(tmp_path):
    with pytest.raises(EngineStartError, match="is no directory with an openvino_model"):
        checked(tmp_path / "none", demo.model_path())
    with pytest.raises(EngineStartError, match="is no directory with an openvino_model"):
        checked("a" * 5000, demo.model_path())


def test_an_ordinary_one_is_taken(tmp_path):
    other = folder(tmp_path / "other")
    checked(other, folder(tmp_path / "model"), assistant_confidence_threshold=0.4)
    checked(other, tmp_path / "model.gguf")


def test_a_head_of_eagle_needs_a_model_whose_layers_are_known(tmp_path, head):
    checked(head, folder(tmp_path / "deep", layers=12))
    few = folder(tmp_path / "few", layers=9)
    with pytest.raises(EngineStartError, match=r"has 9 layers.*<hidden_layers_list value="):
        checked(head, few)
    marks = '<eagle3_mode value="True" /><hidden_layers_list value="0 1 2" />'
    checked(folder(tmp_path / "marked", marks), few)


def test_a_head_of_eagle_does_not_go_with_everything(tmp_path, head):
    deep = folder(tmp_path / "deep", layers=12)
    with pytest.raises(EngineStartError, match="takes no assistant_confidence_threshold"):
        checked(head, deep, assistant_confidence_threshold=0.4)
    with pytest.raises(EngineStartError, match="not a GGUF file"):
        checked(head, tmp_path / "model.gguf")


def test_only_greedy_requests_are_answered_with_a_draft_model():
    engine = OpenVINOEngine("demo", engine_kwargs={"draft_model": str(demo.model_path())})
    with pytest.raises(UnsupportedError, match="greedy requests alone") as caught:
        engine.continue_prompt(GenerateRequest("a", Sampling()))
    assert caught.value.param == "temperature"
    engine.continue_prompt(GenerateRequest("a", Sampling(temperature=0.0)))
    biased = Sampling(logit_bias=((5, 1.0),))  # is sampled without the draft model
    engine.continue_prompt(GenerateRequest("a", biased))


async def texts_and_steps(tickets, **options):
    engine = OpenVINOEngine("demo", engine_kwargs={**EXACT, **options})
    await engine.start()
    try:
        greedy = Sampling(temperature=0.0, max_tokens=60)
        requests = [chat_request(ticket, greedy, stream=False) for ticket in tickets]
        texts = [(await answer(engine, request)).texts[0] for request in requests]
        steps = (await engine.metrics())["steps"]
        found = await asyncio.gather(*(answer(engine, request) for request in requests))
        texts += [one.texts[0] for one in found]
        if "draft_model" in options:
            with pytest.raises(RequestError, match="does not take this request"):
                await answer(engine, CompletionRequest([5], greedy))
        return texts, steps
    finally:
        await engine.stop()


@pytest.mark.convert
@pytest.mark.filterwarnings("default")
async def test_a_head_of_eagle_changes_no_answer_and_saves_steps(tmp_path):
    with demo.tickets_path().open(encoding="utf-8") as lines:
        tickets = [json.loads(line)["ticket"] for line in islice(lines, 20)]
    path = write_eagle_head(tmp_path)
    expected, plain = await texts_and_steps(tickets)
    texts, steps = await texts_and_steps(tickets, draft_model=str(path))
    assert texts == expected
    assert steps < 0.8 * plain
