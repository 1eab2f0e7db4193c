from __future__ import annotations

import json
from typing import Any

import pytest

from penstock.errors import RequestError
from penstock.openai.responses import Answers
from penstock.openai.tools import (
    MAX_TOOLS,
    ToolCallReader,
    arguments_as_objects,
    call_constraint,
    check_tools,
    with_one_table,
)
from penstock.types import Delta, Usage

TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {"name": "a", "parameters": {"type": "object", "properties": {"x": {}}}},
    },
    {"type": "function", "function": {"name": "b"}},
]


def read(text: str, size: int = 1, *, bare: bool = False, reason: Any = "stop") -> Answers:
    reader, answers = ToolCallReader("seed", bare=bare), Answers()
    pieces = [text[at : at + size] for at in range(0, len(text), size)]
    for number, piece in enumerate(pieces):
        last = number == len(pieces) - 1
        delta = Delta(
            text=piece,
            token_ids=(1,),
            finish_reason=reason if last else None,
            usage=Usage() if last else None,
        )
        translated = reader.translate(delta)
        assert translated.token_ids == (1,)
        answers.add(translated)
    return answers


def calls(answers: Answers) -> list[tuple[str, Any]]:
    return [(call.name, json.loads(call.arguments)) for call in answers.tool_calls.get(0, [])]


@pytest.mark.parametrize("size", [1, 3, 500])
@pytest.mark.parametrize(
    ("text", "content", "expected"),
    [
        ("plain text \n", "plain text \n", []),
        ('<tool_call>{"name": "a", "arguments": {}}</tool_call>', "", [("a", {})]),
        (
            '\n\n<tool_call>\n{"name": "a", "arguments": {"x": [{"y": "}"}]}}\n</tool_call>\n',
            "",
            [("a", {"x": [{"y": "}"}]})],
        ),
        (
            '<tool_call>{"name": "a\\"b", "arguments": {"q": "\\\\"}}</tool_call>',
            "",
            [('a"b', {"q": "\\"})],
        ),
        ('<tool_call>{"name": "a", "parameters": {"x": 1}}</tool_call>', "", [("a", {"x": 1})]),
        ('<tool_call>{"arguments": {"x": 1}, "name": "a"}</tool_call>', "", [("a", {"x": 1})]),
        (
            '<tool_call>{"name": "a", "arguments": "{\\"x\\": 1}"}</tool_call>',
            "",
            [("a", {"x": 1})],
        ),
        ('<tool_call>{"name": "a"}</tool_call>', "", [("a", {})]),
        ("<tool_call>[1]</tool_call>", "<tool_call>[1]</tool_call>", []),
        ("<tool_call>{", "<tool_call>{", []),
        ("x < y <tool", "x < y <tool", []),
        (
            'ok <tool_call>{"name": "a", "arguments": {}}</tool_call> and more',
            "ok and more",
            [("a", {})],
        ),
    ],
)
def test_calls_and_text_are_told_apart(
    text: str, content: str, expected: list[Any], size: int
) -> None:
    answers = read(text, size)
    assert answers.texts[0] == content
    assert calls(answers) == expected
    assert answers.reasons[0] == ("tool_calls" if expected else "stop")


def test_a_call_cut_short_keeps_its_reason_and_what_there_was() -> None:
    answers = read('<tool_call>{"name": "a", "arguments": {"x": "lon', reason="length")
    (call,) = answers.tool_calls[0]
    assert (call.name, call.arguments) == ("a", '{"x": "lon')
    assert answers.reasons[0] == "length"


def test_arguments_stream_as_they_come() -> None:
    reader = ToolCallReader("seed")
    text = '<tool_call>{"name": "a", "arguments": {"x": "long"}}</tool_call>'
    parts = [
        part
        for char in text
        for part in getattr(reader.translate(Delta(text=char)), "tool_calls", ())
    ]
    assert parts[0].name == "a"
    assert len(parts) > 5
    assert all(part.id is None for part in parts[1:])


def test_ids_differ_and_repeat() -> None:
    text = '<tool_call>{"name": "a", "arguments": {}}</tool_call>' * 2
    first, second = (call.id for call in read(text).tool_calls[0])
    assert first != second
    assert [call.id for call in read(text, 7).tool_calls[0]] == [first, second]


@pytest.mark.parametrize("size", [1, 500])
def test_a_bare_answer_is_one_call(size: int) -> None:
    answers = read('{"name": "a", "arguments": {"x": "</tool_call>"}} ', size, bare=True)
    assert calls(answers) == [("a", {"x": "</tool_call>"})]
    assert answers.texts[0] == ""
    assert read("cut", size, bare=True).texts[0] == "cut"


def test_the_constraint_allows_just_the_tools_that_may_be_called() -> None:
    assert call_constraint(TOOLS, "auto") is None
    both = call_constraint(TOOLS, "required")
    one = call_constraint(TOOLS, {"type": "function", "function": {"name": "b"}})
    assert both is not None
    assert one is not None
    assert [call["properties"]["name"]["enum"] for call in json.loads(both.spec)["anyOf"]] == [
        ["a"],
        ["b"],
    ]
    assert json.loads(one.spec)["properties"]["name"]["enum"] == ["b"]


def arguments_schema(*parameters: Any) -> Any:
    tools = [
        {"type": "function", "function": {"name": f"f{at}", **given}}
        for at, given in enumerate(parameters)
    ]
    constraint = call_constraint(tools, "required")
    assert constraint is not None
    return json.loads(constraint.spec)


def test_references_in_a_tools_parameters_lead_where_they_did() -> None:
    point: Any = {
        "type": "object",
        "properties": {"$ref": {"$ref": "#/$defs/const"}, "default": {"$ref": "#"}},
    }
    parameters: Any = {
        "type": "object",
        "properties": {
            "to": {"$ref": "#/$defs/point"},
            "text": {"const": {"$ref": "#/$defs/point"}},
        },
        "$defs": {"point": point, "const": {"type": "integer"}},
    }
    for given in (
        [{"parameters": parameters}],
        [{"parameters": parameters}, {"parameters": parameters}],
    ):
        schema = arguments_schema(*given)
        for call in schema.get("anyOf", [schema]):

            def at(reference: Any, schema: Any = schema) -> Any:
                whole = schema
                for name in reference.removeprefix("#/").split("/"):
                    whole = whole[name]  # none leads through a list: xgrammar cannot follow it
                return whole

            arguments = call["properties"]["arguments"]
            if "$ref" in arguments:
                arguments = at(arguments["$ref"])
            assert arguments["properties"]["text"] == parameters["properties"]["text"]
            moved = at(arguments["properties"]["to"]["$ref"])
            assert moved is arguments["$defs"]["point"]
            assert at(moved["properties"]["$ref"]["$ref"]) == {"type": "integer"}
            assert at(moved["properties"]["default"]["$ref"]) is arguments


@pytest.mark.parametrize(
    "given", [{}, {"parameters": None}, {"parameters": {"type": "object", "properties": {}}}]
)
def test_a_tool_without_parameters_gets_no_arguments(given: Any) -> None:
    assert arguments_schema(given)["properties"]["arguments"] == {
        "type": "object",
        "properties": {},
        "additionalProperties": False,
    }


@pytest.mark.parametrize(
    "given", [{"type": "object"}, {"type": "object", "additionalProperties": {"type": "integer"}}]
)
def test_a_tool_with_free_arguments_keeps_them(given: Any) -> None:
    assert arguments_schema({"parameters": given})["properties"]["arguments"] == given


@pytest.mark.parametrize(
    "choice", ["sometimes", {"type": "function"}, {"type": "function", "function": {"name": "c"}}]
)
def test_a_choice_without_a_tool_is_refused(choice: Any) -> None:
    with pytest.raises(RequestError) as caught:
        check_tools(TOOLS, choice)
    assert caught.value.param == "tool_choice"


def test_arguments_become_objects_where_they_can() -> None:
    def said(arguments: Any) -> Any:
        return {
            "role": "assistant",
            "tool_calls": [{"id": "1", "function": {"name": "a", "arguments": arguments}}],
        }

    user = {"role": "user", "content": "x"}
    turned = arguments_as_objects([user, said('{"x": 1}'), said("broken"), said({"x": 2})])
    assert turned[0] is user
    assert [m["tool_calls"][0]["function"]["arguments"] for m in turned[1:]] == [
        {"x": 1},
        "broken",
        {"x": 2},
    ]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"name": "a", "arguments": {"x": 1}}' + " " * 20, "tool_calls"),
        ('{"name": "a", "arguments": {"x": 1}', "tool_calls"),
        ('{"name": "a", "arguments": {"x": 1', "length"),
    ],
)
def test_a_required_call_that_is_whole_was_not_cut_short(text: str, reason: str) -> None:
    assert read(text, bare=True, reason="length").reasons[0] == reason


def test_more_tools_than_any_model_reads_are_refused() -> None:
    check_tools([TOOLS[1]] * MAX_TOOLS, None)
    with pytest.raises(
        RequestError, match=r"at most 1,024 tools may be given, not 1,025"
    ) as refused:
        check_tools([TOOLS[1]] * (MAX_TOOLS + 1), None)
    assert refused.value.param == "tools"


def tool(name: str, parameters: Any) -> Any:
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


def test_definitions_of_all_tools_fit_one_table() -> None:
    a = tool("a", {"properties": {"x": {"$ref": "#/$defs/X"}}, "$defs": {"X": {"const": 1}}})
    b = tool("b", {"properties": {"$ref": {"$ref": "#/$defs/X"}}, "$defs": {"X": {"const": 2}}})
    c = tool("c", {"$ref": "#/definitions/Y", "definitions": {"Y": {"const": {"$ref": "#/a"}}}})
    d = tool("d", {"properties": {"next": {"$ref": "#"}}})
    first, *others, same = with_one_table([a, b, c, d, tool("e", None)])
    assert first is a
    assert same["function"]["parameters"] is None
    found = [other["function"]["parameters"] for other in others]
    body = {"properties": {"next": {"$ref": "#/$defs/tool3"}}}
    assert found == [
        {"properties": {"$ref": {"$ref": "#/$defs/tool1_X"}}, "$defs": {"tool1_X": {"const": 2}}},
        {"$ref": "#/$defs/Y", "$defs": {"Y": {"const": {"$ref": "#/a"}}}},
        {**body, "$defs": {"tool3": body}},
    ]
