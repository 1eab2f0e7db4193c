from __future__ import annotations

import json
from typing import Any

import pytest

from penstock.engines.sampling import check_json_schema
from penstock.errors import RequestError
from penstock.openai.tools import (
    MAX_TOOLS,
    arguments_as_objects,
    call_constraint,
    check_tools,
    tools_as_text,
    with_one_table,
)

TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {"name": "a", "parameters": {"type": "object", "properties": {"x": {}}}},
    },
    {"type": "function", "function": {"name": "b"}},
]


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


def test_the_draft_of_tools_is_that_of_the_constraint() -> None:
    old: Any = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "$id": "https://example.org/place",
        "type": "object",
        "properties": {"at": {"type": "array", "items": [{"$ref": "#/definitions/n"}]}},
        "definitions": {"n": {"type": "number"}},
    }
    for schema in (
        arguments_schema({"parameters": old}),
        arguments_schema({"parameters": old}, {}, {"parameters": {"type": "object"}}),
    ):
        assert schema["$schema"] == old["$schema"]
        assert "example.org" not in json.dumps(schema)  # references begin at the root
        check_json_schema(json.dumps(schema))
    new = {**old, "$schema": "https://json-schema.org/draft/2020-12/schema"}
    assert "$schema" not in arguments_schema({"parameters": old}, {"parameters": new})


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


@pytest.mark.parametrize("given", ["yes", 1, {}])
def test_strict_is_true_or_false(given: Any) -> None:
    tool = {"type": "function", "function": {"name": "a", "strict": given}}
    with pytest.raises(RequestError, match="must be true or false") as caught:
        check_tools([TOOLS[0], tool], None)
    assert caught.value.param == "tools[1].function.strict"


def test_an_image_in_a_result_stays_where_tools_are_text() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:,"}}
    words = {"type": "text", "text": "a cat"}
    messages: list[Any] = [
        {"role": "tool", "tool_call_id": "1", "content": [words, image]},
        {"role": "tool", "tool_call_id": "2", "content": [words, words]},
    ]
    (told,) = tools_as_text(messages, None, system=True)
    assert told["content"] == [
        {"type": "text", "text": "<tool_response>\n"},
        words,
        image,
        {"type": "text", "text": "\n</tool_response>"},
        {"type": "text", "text": "<tool_response>\na cata cat\n</tool_response>"},
    ]
