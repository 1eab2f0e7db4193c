"""Functions, custom tools and allowed tools: they become the usual form, and answers go back."""

import json
from typing import Any

import pytest

from penstock.errors import RequestError
from penstock.openai.framing import ChatFramer
from penstock.openai.parameters.body import parse_body
from penstock.openai.requests import ChatBody
from penstock.openai.response_events import ResponseFramer
from penstock.openai.responses import Answers, chat_completion
from penstock.openai.responses_api import ResponseBody, response_body
from penstock.openai.tool_forms import CustomInput, ToolForm
from penstock.types import Delta, ToolCallPart, Usage

USER = {"role": "user", "content": "q"}
ROUTE = {"name": "route", "parameters": {"type": "object"}}
TOOLS = [
    {"type": "function", "function": ROUTE},
    {"type": "function", "function": {"name": "stop"}},
    {"type": "custom", "custom": {"name": "say", "description": "Says it."}},
]


def body(**fields):
    return parse_body(ChatBody, {"messages": [USER], **fields})


def names(request):
    return [tool["function"]["name"] for tool in request.tools]


def test_functions_are_tools_of_which_one_is_called():
    request = body(functions=[ROUTE], function_call={"name": "route"}).request()
    assert request.tools == [{"type": "function", "function": ROUTE}]
    assert request.tool_choice == {"type": "function", "function": {"name": "route"}}
    assert not request.parallel_tool_calls
    assert body(functions=[ROUTE], function_call="none").request().tool_choice == "none"


def test_calls_of_functions_and_custom_tools_reach_the_template_in_the_usual_form():
    turns = [
        USER,
        {"role": "assistant", "function_call": {"name": "route", "arguments": '{"a": 1}'}},
        {"role": "function", "name": "route", "content": "done"},
        {
            "role": "assistant",
            "tool_calls": [{"id": "x", "type": "custom", "custom": {"name": "say", "input": "hi"}}],
        },
        {"role": "tool", "tool_call_id": "x", "content": "said"},
    ]
    messages = body(messages=turns).request().messages
    (call,) = messages[1]["tool_calls"]
    assert call["function"] == {"name": "route", "arguments": '{"a": 1}'}
    assert messages[2] == {
        "role": "tool",
        "name": "route",
        "content": "done",
        "tool_call_id": call["id"],
    }
    (said,) = messages[3]["tool_calls"]
    assert said == {
        "id": "x",
        "type": "function",
        "function": {"name": "say", "arguments": '{"input": "hi"}'},
    }


@pytest.mark.parametrize("mode", ["auto", "required"])
def test_allowed_tools_leave_those_alone(mode):
    allowed = [
        {"type": "function", "function": {"name": "route"}},
        {"type": "custom", "custom": {"name": "say"}},
    ]
    choice = {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": allowed}}
    request = body(tools=TOOLS, tool_choice=choice).request()
    assert names(request) == ["route", "say"]
    assert request.tool_choice == mode


def test_allowed_tools_of_a_response():
    tools: list[Any] = [
        {"type": "function", "name": name, "parameters": {}} for name in ("route", "stop")
    ]
    allowed = [{"type": "function", "name": "stop"}]
    choice = {"type": "allowed_tools", "mode": "required", "tools": allowed}
    asked = {"input": "q", "tools": tools, "tool_choice": choice}
    request = parse_body(ResponseBody, asked).request()
    assert names(request) == ["stop"]
    assert request.tool_choice == "required"
    wrong = {**choice, "tools": [{"type": "function", "name": "other"}]}
    body = parse_body(ResponseBody, {**asked, "tool_choice": wrong})
    with pytest.raises(RequestError, match="must name some of the tools"):
        body.request()


def test_a_custom_tool_takes_one_text():
    request = body(tools=TOOLS, tool_choice={"type": "custom", "custom": {"name": "say"}}).request()
    assert names(request) == ["route", "stop", "say"]
    function = request.tools[2]["function"]
    assert function["description"] == "Says it."
    assert function["parameters"]["properties"] == {"input": {"type": "string"}}
    assert request.tool_choice == {"type": "function", "function": {"name": "say"}}
    form = {"type": "grammar", "grammar": {"syntax": "regex", "definition": "a|b"}}
    request = body(tools=[{"type": "custom", "custom": {"name": "say", "format": form}}]).request()
    text = request.tools[0]["function"]["parameters"]["properties"]["input"]
    assert text == {"type": "string", "pattern": "^(?:a|b)$"}
    assert request.tools[0]["function"]["strict"]


def response(**fields):
    return parse_body(ResponseBody, {"input": "q", **fields})


SAY = {"type": "custom", "name": "say", "description": "Says it."}


def test_a_custom_tool_of_a_response_takes_one_text():
    request = response(tools=[SAY], tool_choice={"type": "custom", "name": "say"}).request()
    chosen = {"type": "custom", "custom": {"name": "say"}}
    same = body(tools=[TOOLS[2]], tool_choice=chosen).request()
    assert (request.tools, request.tool_choice) == (same.tools, same.tool_choice)
    allowed = {
        "type": "allowed_tools",
        "mode": "auto",
        "tools": [{"type": "custom", "name": "say"}],
    }
    route = {"type": "function", **ROUTE}
    assert names(response(tools=[route, SAY], tool_choice=allowed).request()) == ["say"]
    wrong = response(tools=[{**SAY, "format": {"type": "grammar", "syntax": "lark"}}])
    with pytest.raises(RequestError) as caught:
        wrong.request()
    assert caught.value.param == "tools[0].format"


def test_a_response_tells_a_custom_tools_text():
    asked = response(tools=[SAY])
    pieces = ['{"inp', 'ut": "one \\', "n \\u00e", '9"', "}"]
    call = ToolCallPart(0, "", "c1", "say")
    deltas = [
        Delta(tool_calls=(call,)),
        *(Delta(tool_calls=(ToolCallPart(0, piece),)) for piece in pieces),
        Delta(finish_reason="tool_calls", usage=Usage(1, 1)),
    ]
    item = {
        "type": "custom_tool_call",
        "id": "ctc_1",
        "call_id": "c1",
        "name": "say",
        "input": "one \n é",
        "status": "completed",
    }
    about: Any = {"id": "1", "created": 1, "model": "m"}
    assert response_body(Answers(deltas), asked, **about)["output"] == [item]
    framer = ResponseFramer(asked, **about)
    written = framer.open() + b"".join(map(framer.frame, deltas)) + framer.close()
    events = [json.loads(line[6:]) for line in written.splitlines() if line.startswith(b"data: ")]
    of_text = [e for e in events if e["type"].startswith("response.custom_tool_call_input")]
    assert "".join(e["delta"] for e in of_text[:-1]) == of_text[-1]["input"] == item["input"]
    assert {e["item_id"] for e in of_text} == {"ctc_1"}
    assert events[-1]["response"]["output"] == [item]


TEXT = 'a "b" \\ \n é 😀 end'


@pytest.mark.parametrize("ascii", [True, False])
def test_a_custom_tools_text_in_pieces_of_any_size(ascii):
    given = json.dumps({"input": TEXT}, ensure_ascii=ascii) + " "
    for size in range(1, len(given) + 1):
        text = CustomInput()
        pieces = [text.push(given[at : at + size]) for at in range(0, len(given), size)]
        assert "".join(pieces) == TEXT
        assert all(one < "\ud800" or one > "\udfff" for piece in pieces for one in piece)


def test_custom_calls_of_a_response_and_their_results_are_read_back():
    turns = [
        {"role": "user", "content": "q"},
        {"type": "custom_tool_call", "call_id": "c1", "name": "say", "input": "hi"},
        {"type": "custom_tool_call_output", "call_id": "c1", "output": "said"},
    ]
    _, calls, result = response(input=turns).request().messages
    assert calls["tool_calls"][0]["function"] == {"name": "say", "arguments": '{"input": "hi"}'}
    assert result == {"role": "tool", "tool_call_id": "c1", "content": "said"}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"functions": [{}]}, "functions[0].name"),
        ({"functions": [ROUTE], "function_call": {"name": "x"}}, "function_call"),
        ({"functions": [ROUTE], "function_call": "always"}, "function_call"),
        ({"function_call": {"name": "x"}}, "function_call"),
        ({"functions": [ROUTE], "tools": TOOLS}, "functions"),
        ({"tools": [{"type": "custom", "custom": {}}]}, "tools[0].custom.name"),
        (
            {"tools": [{"type": "custom", "custom": {"name": "a", "format": {"type": "grammar"}}}]},
            "tools[0].custom.format",
        ),
        (
            {"tools": [{"type": "custom", "custom": {"name": "a", "format": "text"}}]},
            "tools[0].custom.format",
        ),
        (
            {"tools": TOOLS, "tool_choice": {"type": "allowed_tools"}},
            "tool_choice.allowed_tools",
        ),
        (
            {
                "tools": TOOLS,
                "tool_choice": {
                    "type": "allowed_tools",
                    "allowed_tools": {
                        "mode": "auto",
                        "tools": [{"type": "function", "function": {"name": "other"}}],
                    },
                },
            },
            "tool_choice.allowed_tools.tools",
        ),
        (
            {
                "tools": TOOLS,
                "tool_choice": {
                    "type": "allowed_tools",
                    "allowed_tools": {
                        "mode": "auto",
                        "tools": [{"type": "function", "function": {"name": "route", "x": 1}}],
                    },
                },
            },
            "tool_choice.allowed_tools.tools[0].function.x",
        ),
    ],
)
def test_mistakes_name_their_parameter(fields, param):
    with pytest.raises(RequestError) as caught:
        body(**fields).request()
    assert caught.value.param == param


CALLS = [
    Delta(usage=Usage(5), tool_calls=(ToolCallPart(0, '{"inp', "a", "say"),)),
    Delta(tool_calls=(ToolCallPart(0, 'ut": "gr\\u00'),)),
    Delta(tool_calls=(ToolCallPart(0, 'fc\\"\\ud83d'),)),
    Delta(tool_calls=(ToolCallPart(0, '\\ude42"}'), ToolCallPart(1, "{}", "b", "route"))),
    Delta(finish_reason="tool_calls", usage=Usage(5, 4)),
]
ABOUT: Any = {"id": "x", "created": 1, "model": "m"}


def answered(form):
    answers = Answers()
    for delta in CALLS:
        answers.add(delta)
    return chat_completion(answers, **ABOUT, form=form)["choices"][0]


def streamed(form):
    framer = ChatFramer(**ABOUT, form=form)
    chunks = [framer.frame(delta) for delta in CALLS]
    return [json.loads(c.removeprefix(b"data: "))["choices"][0] for c in chunks if c]


def test_calls_of_custom_tools_come_back_as_texts():
    form = ToolForm(custom=frozenset({"say"}))
    custom, function = answered(form)["message"]["tool_calls"]
    assert custom == {"id": "a", "type": "custom", "custom": {"name": "say", "input": 'grü"🙂'}}
    assert function["function"] == {"name": "route", "arguments": "{}"}
    chunks = streamed(form)
    calls = [call for chunk in chunks for call in chunk["delta"].get("tool_calls", ())]
    assert calls[0] == {
        "index": 0,
        "id": "a",
        "type": "custom",
        "custom": {"name": "say", "input": ""},
    }
    texts = [call["custom"]["input"] for call in calls if "custom" in call]
    assert texts == ["", "gr", 'ü"', "🙂"]
    assert calls[-1]["function"] == {"name": "route", "arguments": "{}"}
    assert chunks[-1]["finish_reason"] == "tool_calls"


def test_calls_of_functions_come_back_as_one_function_call():
    whole = answered(ToolForm(functions=True))
    assert whole["message"]["function_call"]["name"] == "say"
    assert "tool_calls" not in whole["message"]
    assert whole["finish_reason"] == "function_call"
    chunks = streamed(ToolForm(functions=True))
    assert chunks[0]["delta"]["function_call"] == {"name": "say", "arguments": '{"inp'}
    assert chunks[-1]["finish_reason"] == "function_call"


@pytest.mark.parametrize("form", [ToolForm(), ToolForm(custom=frozenset({"say"}))])
def test_a_chunk_has_each_call_once(form):
    """A second piece in a chunk is a call of its own for OpenAI's Python client before 3.14."""
    parts = (ToolCallPart(0, '{"a": ', "b", "route"), ToolCallPart(0, "1}"))
    chunk = ChatFramer(**ABOUT, form=form).frame(Delta(tool_calls=parts))
    (choice,) = json.loads(chunk.removeprefix(b"data: "))["choices"]
    (call,) = choice["delta"]["tool_calls"]
    assert call["function"] == {"name": "route", "arguments": '{"a": 1}'}
