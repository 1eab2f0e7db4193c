from __future__ import annotations

import json
from typing import Any

import pytest

from penstock.engines.templates.chat_template import ChatTemplate

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "clock"}}
ASK: Any = {
    "model": "m",
    "messages": [{"role": "user", "content": "Weather?"}],
    "tools": [WEATHER, CLOCK],
}
SAID = (
    'Let me see.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Köln </tool_call>'
    ' }"}}\n</tool_call>\n'
)
SAID += '<tool_call>\n{"arguments": {}, "name": "clock"}\n</tool_call>'


@pytest.fixture
async def engine(scripted: Any) -> Any:
    made = scripted()
    await made.start()
    return made


@pytest.fixture
async def tools_client(engine: Any, served: Any, handle: Any) -> Any:
    async with served(handle("m", engine)).client() as client:
        yield client


def streamed_calls(text: str, events: Any) -> tuple[str, list[dict[str, str]], str]:
    content, reason = "", ""
    calls: list[dict[str, str]] = []
    for data in events(text)[:-1]:
        choice = json.loads(data)["choices"][0]
        content += choice["delta"].get("content") or ""
        for part in choice["delta"].get("tool_calls", []):
            if "id" in part:
                assert part["index"] == len(calls)
                calls.append({"id": part["id"], "name": part["function"]["name"], "arguments": ""})
            calls[part["index"]]["arguments"] += part["function"]["arguments"]
        reason = choice["finish_reason"] or reason
    return content, calls, reason


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
async def test_calls_are_read_out_of_the_text(
    engine: Any, tools_client: Any, events: Any, size: int
) -> None:
    engine.pieces = [SAID[at : at + size] for at in range(0, len(SAID), size)]
    whole = (await tools_client.post("/v1/chat/completions", json=ASK)).json()["choices"][0]
    assert whole["finish_reason"] == "tool_calls"
    assert whole["message"]["content"] == "Let me see."
    functions = [call["function"] for call in whole["message"]["tool_calls"]]
    assert [function["name"] for function in functions] == ["weather", "clock"]
    assert json.loads(functions[0]["arguments"]) == {"city": "Köln </tool_call> }"}
    answer = await tools_client.post("/v1/chat/completions", json={**ASK, "stream": True})
    content, calls, reason = streamed_calls(answer.text, events)
    assert (content, reason) == ("Let me see.", "tool_calls")
    assert [(call["name"], json.loads(call["arguments"])) for call in calls] == [
        (function["name"], json.loads(function["arguments"])) for function in functions
    ]
    assert len({call["id"] for call in calls}) == 2


@pytest.mark.parametrize("size", [1, 7, 1000])
async def test_without_parallel_calls_there_is_one(
    engine: Any, tools_client: Any, events: Any, size: int
) -> None:
    said = SAID + " And then?"
    engine.pieces = [said[at : at + size] for at in range(0, len(said), size)]
    ask = {**ASK, "parallel_tool_calls": False}
    message = (await tools_client.post("/v1/chat/completions", json=ask)).json()["choices"][0][
        "message"
    ]
    assert [call["function"]["name"] for call in message["tool_calls"]] == ["weather"]
    assert message["content"] == "Let me see."
    answer = await tools_client.post("/v1/chat/completions", json={**ask, "stream": True})
    content, calls, reason = streamed_calls(answer.text, events)
    assert (content, [call["name"] for call in calls], reason) == (
        "Let me see.",
        ["weather"],
        "tool_calls",
    )
    body: Any = {"model": "m", "input": "?", "parallel_tool_calls": False}
    body["tools"] = [{"type": "function", **tool["function"]} for tool in ASK["tools"]]
    output = (await tools_client.post("/v1/responses", json=body)).json()["output"]
    assert [item["type"] for item in output] == ["message", "function_call"]
    body = {
        "model": "m",
        "max_tokens": 50,
        "messages": ASK["messages"],
        "tool_choice": {"type": "auto"},
    }
    body["tools"] = [
        {"name": tool["function"]["name"], "input_schema": {}} for tool in ASK["tools"]
    ]
    for alone, calls_made in ((True, 1), (False, 2)):
        body["tool_choice"]["disable_parallel_tool_use"] = alone
        blocks = (await tools_client.post("/v1/messages", json=body)).json()["content"]
        assert [block["type"] for block in blocks] == ["text"] + ["tool_use"] * calls_made


async def test_a_template_without_tools_has_them_in_its_prompt(
    engine: Any, tools_client: Any
) -> None:
    engine.template = ChatTemplate("{% for m in messages %}{{ m.content }}{% endfor %}")
    engine.pieces = ["ok"]
    for choice, shown in (("auto", True), ("required", True), ("none", False)):
        answer = await tools_client.post(
            "/v1/chat/completions", json={**ASK, "tool_choice": choice}
        )
        assert answer.status_code == 200
        prompt = engine.prompts[-1]
        assert all((tool["function"]["name"] in prompt) is shown for tool in ASK["tools"])


async def test_what_is_no_call_stays_text(engine: Any, tools_client: Any, events: Any) -> None:
    engine.pieces = list("a < b <tool_call>not json</tool_call> <tool")
    for stream in (False, True):
        answer = await tools_client.post("/v1/chat/completions", json={**ASK, "stream": stream})
        if stream:
            content, calls, reason = streamed_calls(answer.text, events)
            assert (content, calls, reason) == ("".join(engine.pieces), [], "stop")
        else:
            choice = answer.json()["choices"][0]
            assert choice["message"] == {"role": "assistant", "content": "".join(engine.pieces)}
            assert choice["finish_reason"] == "stop"


async def test_tool_choice_none_hides_the_tools(engine: Any, tools_client: Any) -> None:
    engine.pieces = ["<tool_call>{}</tool_call>"]
    choice = (
        await tools_client.post("/v1/chat/completions", json={**ASK, "tool_choice": "none"})
    ).json()["choices"][0]
    assert choice["message"]["content"] == "<tool_call>{}</tool_call>"
    assert "weather" not in engine.prompts[-1]
    await tools_client.post("/v1/chat/completions", json=ASK)
    assert "weather" in engine.prompts[-1]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("choice", "names"),
    [
        ("required", {"weather", "clock"}),
        ({"type": "function", "function": {"name": "weather"}}, {"weather"}),
    ],
)
async def test_a_required_call_is_a_constraint(
    engine: Any, tools_client: Any, events: Any, choice: Any, names: set[str], stream: bool
) -> None:
    request = {**ASK, "tool_choice": choice, "stream": stream}
    answer = await tools_client.post("/v1/chat/completions", json=request)
    assert engine.sampled[-1].structured.kind == "json_schema"
    if stream:
        content, calls, reason = streamed_calls(answer.text, events)
        ((name, arguments),) = [(call["name"], call["arguments"]) for call in calls]
        assert (content, reason) == ("", "tool_calls")
    else:
        said = answer.json()["choices"][0]
        (function,) = [call["function"] for call in said["message"]["tool_calls"]]
        name, arguments = function["name"], function["arguments"]
        assert said["finish_reason"] == "tool_calls"
        assert said["message"]["content"] is None
    assert name in names
    assert (
        isinstance(json.loads(arguments)["city" if name == "weather" else ""], str)
        or name == "clock"
    )


async def test_a_required_call_is_held_to_its_tool_not_to_the_response_format(
    engine: Any, tools_client: Any
) -> None:
    formed = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "null"}}}
    request = {**ASK, "tool_choice": "required", "response_format": formed}
    answer = await tools_client.post("/v1/chat/completions", json=request)
    assert answer.json()["choices"][0]["finish_reason"] == "tool_calls"
    assert "weather" in engine.sampled[-1].structured.spec
    await tools_client.post("/v1/chat/completions", json={**request, "tool_choice": "none"})
    assert engine.sampled[-1].structured.spec == '{"type": "null"}'


async def test_earlier_calls_reach_the_template_as_objects(engine: Any, tools_client: Any) -> None:
    engine.pieces = ["ok"]
    call = {
        "id": "1",
        "type": "function",
        "function": {"name": "weather", "arguments": '{"city": "Bonn"}'},
    }
    messages = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "rain"},
    ]
    assert (
        await tools_client.post("/v1/chat/completions", json={**ASK, "messages": messages})
    ).status_code == 200
    assert "Bonn" in engine.prompts[-1]


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"tools": [{"type": "function"}]}, "tools[0]"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "web_search"}]}, "tools[0]"),
        ({"tool_choice": "always"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "wether"}}}, "tool_choice"),
        ({"tools": None, "tool_choice": "required"}, "tool_choice"),
    ],
)
async def test_wrong_tools_name_the_parameter(
    tools_client: Any, change: dict[str, Any], param: str
) -> None:
    answer = await tools_client.post("/v1/chat/completions", json={**ASK, **change})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
