"""Tools of a template that knows none, and answers that continue a text, without vLLM's parsers."""

import json

import pytest
import pytest_asyncio

from penstock.engines.vllm.engine import VLLMEngine
from penstock.errors import RequestError
from penstock.testing import answer
from penstock.types import ChatRequest, Sampling

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.asyncio(loop_scope="module"),
]

USER = {
    "role": "user",
    "content": "My Solara 77 arrived broken and nobody answers. I want my money back!",
}
TOOL = {
    "type": "function",
    "function": {
        "name": "route",
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
TALKS = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GREEDY = Sampling(max_tokens=60, temperature=0)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine():
    engine = VLLMEngine("demo")
    await engine.start()
    yield engine
    await engine.stop()


async def test_a_template_without_tools_has_them_in_its_prompt(engine):
    async def ask(*messages, **more):
        return await answer(
            engine, ChatRequest(list(messages), GREEDY, chat_template=TALKS, stream=False, **more)
        )

    plain = (await ask(USER)).usage.prompt_tokens
    shown = (await ask(USER, tools=[TOOL])).usage.prompt_tokens
    assert shown > plain + 50
    forced = await ask(USER, tools=[TOOL], tool_choice="required")
    (call,) = forced.tool_calls[0]
    assert (call.name, list(json.loads(call.arguments))) == ("route", ["desk"])
    for content in ({"content": None}, {}):
        turn = {"role": "assistant", "tool_calls": [CALL], **content}
        result = {"role": "tool", "tool_call_id": "call_1", "content": "done"}
        whole = await ask(USER, turn, result, tools=[TOOL])
        assert whole.usage.prompt_tokens > shown


@pytest.mark.parametrize("stream", [True, False])
async def test_an_answer_continues_what_it_would_have_said(engine, stream):
    whole = (await answer(engine, ChatRequest([USER], GREEDY))).texts[0]
    cut = whole.index('","priority')  # where a token ends
    turn = {"role": "assistant", "content": whole[:cut]}
    asked = ChatRequest(
        [USER, turn],
        GREEDY,
        stream=stream,
        continue_final_message=True,
        add_generation_prompt=False,
        echo=True,
    )
    assert (await answer(engine, asked)).texts[0] == whole


async def test_a_text_that_the_template_changes_cannot_be_continued(engine):
    asked = ChatRequest(
        [USER, {"role": "assistant", "content": "so it is"}],
        GREEDY,
        chat_template=TALKS.replace("m['content']", "m['content'].split('it')[0]"),
        continue_final_message=True,
    )
    with pytest.raises(RequestError) as caught:
        await answer(engine, asked)
    assert caught.value.param == "continue_final_message"
