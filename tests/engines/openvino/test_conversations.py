"""Tool round trips and answers that continue a text, on real models."""

from __future__ import annotations

import json
import shutil

import pytest

from penstock.demo import MODEL_NAME, model_path
from penstock.engines.openvino.engine import OpenVINOEngine
from penstock.engines.tasks import generated
from penstock.openai.responses import Answers
from penstock.types import ChatRequest, Sampling

USER = {
    "role": "user",
    "content": "My Solara 77 arrived broken and nobody answers. I want my money back!",
}
TOOL = {
    "type": "function",
    "function": {
        "name": "route",
        "description": "Send a ticket to a desk.",
        "parameters": {
            "type": "object",
            "properties": {"desk": {"enum": ["sales", "repairs"]}},
            "required": ["desk"],
            "additionalProperties": False,
        },
    },
}
CALL = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "route", "arguments": '{"desk": "repairs"}'},
}
RESULT = {"role": "tool", "tool_call_id": "call_1", "content": "done"}
SHORT = Sampling(max_tokens=8, temperature=0)
GREEDY = Sampling(max_tokens=200, temperature=0)


async def ask(engine: OpenVINOEngine, *messages: dict, sampling=SHORT, **more) -> Answers:
    request = ChatRequest(list(messages), sampling, stream=False, **more)
    return await Answers.of(generated(engine, request))


@pytest.fixture
async def demo():
    engine = OpenVINOEngine(MODEL_NAME)
    await engine.start()
    yield engine
    await engine.stop()


@pytest.fixture
async def smol(smollm2):
    engine = OpenVINOEngine(str(smollm2))
    await engine.start()
    yield engine
    await engine.stop()


async def _round_trip(engine: OpenVINOEngine) -> None:
    plain = (await ask(engine, USER)).usage.prompt_tokens
    shown = (await ask(engine, USER, tools=[TOOL])).usage.prompt_tokens
    hidden = (await ask(engine, USER, tools=[TOOL], tool_choice="none")).usage.prompt_tokens
    assert plain == hidden < shown
    forced = await ask(engine, USER, tools=[TOOL], tool_choice="required", sampling=GREEDY)
    (call,) = forced.tool_calls[0]
    assert call.name == "route"
    assert json.loads(call.arguments)["desk"] in ("sales", "repairs")
    assert forced.reasons[0] == "tool_calls"
    for content in ({"content": None}, {"content": ""}, {}):
        turn = {"role": "assistant", "tool_calls": [CALL], **content}
        answers = await ask(engine, USER, turn, RESULT, tools=[TOOL])
        assert answers.usage.prompt_tokens > shown
        assert answers.reasons[0] in ("stop", "length", "tool_calls")
        await ask(engine, USER, turn, RESULT, USER)


async def test_a_tool_round_trip_of_the_demo_model(demo):
    await _round_trip(demo)


@pytest.mark.slow
async def test_a_tool_round_trip_of_a_model_whose_template_knows_no_tools(smol):
    await _round_trip(smol)


async def test_an_answer_continues_what_it_would_have_said(demo):
    whole = (await ask(demo, USER, sampling=GREEDY)).texts[0]
    cut = whole.index('","priority')  # where a token ends
    begun, rest = whole[:cut], whole[cut:]
    continues = {"continue_final_message": True, "add_generation_prompt": False}
    turn = {"role": "assistant", "content": begun}
    answers = await ask(demo, USER, turn, sampling=GREEDY, **continues)
    assert answers.texts[0] == rest
    echoed = await ask(demo, USER, turn, sampling=GREEDY, echo=True, **continues)
    assert echoed.texts[0] == whole


@pytest.mark.slow
async def test_smollm2_continues_a_text(smol):
    turn = {"role": "assistant", "content": "The capital of France is"}
    question = {"role": "user", "content": "What is the capital of France?"}
    answers = await ask(smol, question, turn, continue_final_message=True)
    assert answers.texts[0].startswith(" Paris")


async def test_a_template_for_tools_beside_the_models_own(tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(model_path(), folder)
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools[0].type }}")
    engine = OpenVINOEngine(str(folder))
    await engine.start()
    try:
        plain = ChatRequest([USER], SHORT, stream=False)
        with_tools = ChatRequest([USER], SHORT, stream=False, tools=[TOOL])
        assert engine.template.prompt(plain).count(USER["content"]) == 1
        assert engine.template.prompt(with_tools) == "function"
    finally:
        await engine.stop()
