"""Keys inside a request's fields: honoured, known to be harmless, or refused by their place."""

import json
import typing
from importlib import import_module
from typing import Any

import pytest

from penstock.engines.simulated.engine import SimulatedEngine
from penstock.errors import RequestError
from penstock.openai.extensions import RerankBody, TokenizeBody
from penstock.openai.messages_api import CountBody, MessageBody
from penstock.openai.parameters.body import parse_body
from penstock.openai.parameters.inside import INSIDE, Shape, places
from penstock.openai.requests import ChatBody, CompletionBody
from penstock.openai.responses_api import ResponseBody
from penstock.serve.api.endpoints.responses import ConversationBody, ConversationItems

ASK = {"role": "user", "content": "a"}
FUNCTION = {"name": "f", "parameters": {"type": "object", "properties": {"x": {"any": 1}}}}
TOOL = {"type": "function", "function": FUNCTION}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
TEXT = {"type": "text", "text": "a"}
IMAGE = {"type": "image_url", "image_url": {"url": "data:,"}}
SCHEMA = {"type": "object", "anything": True}
USE = {"type": "tool_use", "id": "t", "name": "f", "input": {"any": 1}}
CLAUDES = {"name": "f", "input_schema": SCHEMA}


def said(*parts: Any, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(parts), **more}]}


def claude(**fields: Any) -> dict[str, Any]:
    return {"messages": [ASK], "max_tokens": 1, **fields}


@pytest.mark.parametrize(
    ("form", "body", "place"),
    [
        (ChatBody, {"messages": [ASK, {**ASK, "x": 1}]}, "messages[1].x"),
        (ChatBody, {"messages": [{**ASK, "audio": {"id": "a"}}]}, "messages[0].audio"),
        (ChatBody, {"messages": [{**ASK, "prefix": True}]}, "messages[0].prefix"),
        (ChatBody, said(TEXT, {**TEXT, "txt": "a"}), "messages[0].content[1].txt"),
        (
            ChatBody,
            said({**IMAGE, "image_url": {"url": "", "x": 1}}),
            "messages[0].content[0].image_url.x",
        ),
        (ChatBody, said(TEXT, {"type": "tekst", "text": "a"}), "messages[0].content[1].type"),
        (ChatBody, said({"type": {"a": 1}}), "messages[0].content[0].type"),
        (
            ChatBody,
            {"messages": [{"role": "assistant", "tool_calls": [{**CALL, "x": 1}]}]},
            "messages[0].tool_calls[0].x",
        ),
        (ChatBody, {"messages": [ASK], "tools": [{**TOOL, "x": 1}]}, "tools[0].x"),
        (
            ChatBody,
            {"messages": [ASK], "tools": [{**TOOL, "allowed_callers": ["code"]}]},
            "tools[0].allowed_callers",
        ),
        (
            ChatBody,
            {"messages": [ASK], "tools": [TOOL, {**TOOL, "function": {**FUNCTION, "strit": True}}]},
            "tools[1].function.strit",
        ),
        (
            ChatBody,
            {"messages": [ASK], "tools": [{"type": "custom", "custom": {"name": "f", "x": 1}}]},
            "tools[0].custom.x",
        ),
        (ChatBody, {"messages": [ASK], "functions": [{**FUNCTION, "x": 1}]}, "functions[0].x"),
        (
            ChatBody,
            {
                "messages": [ASK],
                "tools": [TOOL],
                "tool_choice": {"type": "function", "function": {"name": "f"}, "x": 1},
            },
            "tool_choice.x",
        ),
        (
            ChatBody,
            {"messages": [ASK], "response_format": {"type": "json_object", "x": 1}},
            "response_format.x",
        ),
        (
            ChatBody,
            {
                "messages": [ASK],
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"schema": SCHEMA, "strickt": True},
                },
            },
            "response_format.json_schema.strickt",
        ),
        (
            CompletionBody,
            {"prompt": "a", "response_format": {"type": "regex", "pattern": "a", "x": 1}},
            "response_format.x",
        ),
        (TokenizeBody, {"messages": [{**ASK, "x": 1}]}, "messages[0].x"),
        (ResponseBody, {"input": [{**ASK, "x": 1}]}, "input[0].x"),
        (
            ResponseBody,
            {"input": [{"role": "user", "content": [{"type": "input_text", "text": "", "x": 1}]}]},
            "input[0].content[0].x",
        ),
        (
            ResponseBody,
            {"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]},
            "input[0].content[0].file_id",
        ),
        (
            ResponseBody,
            {"input": "a", "tools": [{"type": "function", "x": 1, **FUNCTION}]},
            "tools[0].x",
        ),
        (
            ResponseBody,
            {"input": "a", "text": {"format": {"type": "json_schema", "schema": SCHEMA, "x": 1}}},
            "text.format.x",
        ),
        (ResponseBody, {"input": "a", "conversation": {"id": "c", "x": 1}}, "conversation.x"),
        (MessageBody, claude(messages=[{**ASK, "x": 1}]), "messages[0].x"),
        (
            MessageBody,
            claude(messages=[{"role": "assistant", "content": [{**USE, "x": 1}]}]),
            "messages[0].content[0].x",
        ),
        (MessageBody, claude(system=[{**TEXT, "x": 1}]), "system[0].x"),
        (MessageBody, claude(tools=[{**CLAUDES, "parameters": {}}]), "tools[0].parameters"),
        (
            MessageBody,
            claude(tools=[CLAUDES], tool_choice={"type": "auto", "x": 1}),
            "tool_choice.x",
        ),
        (
            MessageBody,
            claude(output_config={"format": {"type": "json_schema", "schema": SCHEMA, "x": 1}}),
            "output_config.format.x",
        ),
        (CountBody, {"messages": [{**ASK, "x": 1}]}, "messages[0].x"),
        (RerankBody, {"query": "a", "documents": [{"text": "a", "x": 1}]}, "documents[0].x"),
    ],
)
def test_an_unknown_key_is_refused_by_its_place(form: Any, body: Any, place: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse_body(form, body)
    assert (caught.value.status, caught.value.param) == (400, place)
    assert place in str(caught.value)


def test_the_refusal_says_what_was_meant() -> None:
    body = {"messages": [ASK], "tools": [{**TOOL, "function": {**FUNCTION, "paramters": {}}}]}
    with pytest.raises(RequestError, match="Did you mean 'parameters'"):
        parse_body(ChatBody, body)


SENT_BACK = {
    "role": "assistant",
    "content": None,
    "refusal": None,
    "audio": None,
    "unknown": None,
    "annotations": [],
    "parsed": {"a": 1},
    "reasoning_content": "so",
    "prefix": False,
    "provider_specific_fields": {"x": 1},
    "tool_calls": [
        {
            **CALL,
            "index": 0,
            "function": {"name": "f", "arguments": "{}", "parsed_arguments": {"x": 1}},
        }
    ],
}


@pytest.mark.parametrize(
    ("form", "body"),
    [
        (ChatBody, {"messages": [ASK, SENT_BACK]}),
        (ResponseBody, {"input": "a", "stream": True, "stream_options": {"include_usage": True}}),
        (ChatBody, said({**TEXT, "cache_control": {"type": "ephemeral"}})),
        # The Agents SDK for JavaScript copies a message into its text.
        (ChatBody, said({**TEXT, "role": "assistant", "tool_calls": [CALL], "refusal": ""})),
        (ChatBody, said({**IMAGE, "image_url": {"url": "data:,", "detail": "low"}})),
        (ChatBody, said({"type": "file", "file": {"file_id": "x"}})),
        (ChatBody, said({"type": "refusal", "refusal": "No."})),
        (ChatBody, {"messages": [ASK], "tools": [{**TOOL, "allowed_callers": ["direct"]}]}),
        (
            ResponseBody,
            {
                "input": [
                    {"type": "reasoning", "id": "r", "summary": [], "encrypted_content": "x"},
                    {
                        "type": "message",
                        "id": "m",
                        "status": "completed",
                        "role": "assistant",
                        "content": [
                            {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
                        ],
                    },
                ]
            },
        ),
        (
            MessageBody,
            claude(
                messages=[
                    ASK,
                    {
                        "role": "assistant",
                        "content": [
                            {"type": "thinking", "thinking": "so", "signature": "x"},
                            {**TEXT, "citations": None},
                            {**USE, "caller": {"type": "direct"}},
                        ],
                    },
                    {
                        "role": "user",
                        "content": [
                            {"type": "tool_result", "tool_use_id": "t", "is_error": True},
                        ],
                    },
                ],
                tools=[{**CLAUDES, "cache_control": {"type": "ephemeral"}}],
            ),
        ),
        (CountBody, {"messages": [ASK], "speed": "standard", "inference_geo": "eu"}),
        # Claude Code and Codex send these.
        (
            MessageBody,
            claude(
                context_management={
                    "edits": [{"type": "clear_thinking_20251015", "keep": "all"}],
                }
            ),
        ),
        (ResponseBody, {"input": "a", "client_metadata": {"turn_id": "1"}}),
    ],
)
def test_what_clients_send_is_taken(form: Any, body: Any) -> None:
    parse_body(form, body)


def test_parts_that_are_texts_by_another_name_are_texts() -> None:
    parts = [
        TEXT,
        {"type": "input_text", "text": "b"},
        {"type": "refusal", "refusal": "No."},
        {"type": "output_text", "text": None},
    ]
    for request in (
        parse_body(ChatBody, said(*parts)).request(),
        parse_body(TokenizeBody, said(*parts)).request().chat,
    ):
        assert request is not None
        assert request.messages[0]["content"] == [
            {"type": "text", "text": text} for text in ("a", "b", "No.", "")
        ]


def test_an_image_in_a_tools_result_is_a_part() -> None:
    source = {"type": "base64", "media_type": "image/png", "data": "AAAA"}
    found = [TEXT, {"type": "image", "source": source, "cache_control": {"type": "ephemeral"}}]
    result = {"type": "tool_result", "tool_use_id": "t", "content": found}
    messages = [ASK, {"role": "assistant", "content": [USE]}, {"role": "user", "content": [result]}]
    told = parse_body(MessageBody, claude(messages=messages)).request().messages[2]
    assert told["content"] == [
        TEXT,
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
    ]


@pytest.mark.parametrize("kind", ["thinking", "prompt_embeds", "file", "image_url"])
async def test_an_engine_that_reads_texts_refuses_other_parts(kind: str) -> None:
    engine = SimulatedEngine("sim")
    await engine.start()
    request = parse_body(ChatBody, said({"type": kind})).request()
    with pytest.raises(RequestError) as caught:
        _ = [delta async for delta in engine.chat(request)]
    assert caught.value.param == "messages[0].content[0]"
    await engine.stop()


def test_objects_of_a_wrong_form_are_left_to_others() -> None:
    parse_body(ChatBody, {"messages": [{"role": "user", "content": [None, 1, [TEXT]]}]})


@pytest.mark.parametrize(
    ("form", "body", "place"),
    [
        (ChatBody, said({"type": []}), "messages[0].content[0].type"),
        (ChatBody, {"messages": [{**ASK, "name": 5}]}, "messages[0].name"),
        (ChatBody, {"messages": [ASK], "tools": [{"type": {}}]}, "tools[0].type"),
        (
            ChatBody,
            {"messages": [ASK], "tools": [{"type": "function", "function": {"name": [5]}}]},
            "tools[0].function.name",
        ),
        (ResponseBody, {"input": [{"type": [[]]}]}, "input[0].type"),
        (ResponseBody, {"input": [{"type": "function_call", "call_id": 5}]}, "input[0].call_id"),
        (ConversationBody, {"items": [{"type": {"a": None}}]}, "items[0].type"),
        (
            MessageBody,
            {"messages": [{"role": ["user"], "content": "a"}], "max_tokens": 1},
            "messages[0].role",
        ),
    ],
)
def test_names_and_types_are_texts(form: Any, body: dict[str, Any], place: str) -> None:
    with pytest.raises(RequestError, match="must be text") as caught:
        parse_body(form, body)
    assert caught.value.param == place
    parse_body(ChatBody, {"messages": [{**ASK, "name": None, "tool_call_id": None}]})


@pytest.mark.parametrize(
    "tools", [5, [5], [{"type": []}], [{"type": "function", "function": {"name": {}}}], [{}]]
)
def test_allowed_tools_of_a_wrong_form_are_refused(tools: Any) -> None:
    tool = {"type": "function", "function": {"name": "a"}}
    for given in ([tool], [{"type": "function", "function": 5}]):
        body = {"messages": [ASK], "tools": given}
        choice = {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": tools}}
        with pytest.raises(RequestError):
            parse_body(ChatBody, {**body, "tool_choice": choice}).request()
    flat = {"type": "function", "name": "a"}
    choice = {"type": "allowed_tools", "mode": "auto", "tools": tools}
    with pytest.raises(RequestError):
        parse_body(ResponseBody, {"input": "a", "tools": [flat], "tool_choice": choice}).request()


def test_items_that_no_request_could_hold_are_not_stored() -> None:
    item = {"type": "message", "role": "user", "content": "a"}
    parse_body(ConversationItems, {"items": [{**item, "id": "msg_1", "status": "completed"}]})
    with pytest.raises(RequestError) as caught:
        parse_body(ConversationItems, {"items": [{**item, "unheard_of": 1}]})
    assert caught.value.param == "items[0].unheard_of"


def test_a_json_object_with_a_schema_follows_it() -> None:
    body = {"messages": [ASK], "response_format": {"type": "json_object", "schema": SCHEMA}}
    sampling = parse_body(ChatBody, body).request().sampling
    assert sampling.structured is not None
    assert sampling.structured.kind == "json_schema"
    assert json.loads(sampling.structured.spec) == SCHEMA


def test_examples_of_a_tools_input_are_shown_to_the_model() -> None:
    tools = [{**CLAUDES, "description": "Does it.", "input_examples": [{"x": 1}]}]
    request = parse_body(MessageBody, claude(tools=tools)).request()
    assert request.tools is not None
    assert request.tools[0]["function"]["description"] == (
        'Does it.\nExamples of its input: [{"x": 1}]'
    )


def test_a_type_of_null_is_the_usual_one() -> None:
    claudes = parse_body(MessageBody, claude(tools=[{**CLAUDES, "type": None}])).request()
    assert claudes.tools is not None
    item = {**ASK, "type": None}
    assert parse_body(ResponseBody, {"input": [item]}).request().messages == [ASK]


OF_ENGINES: dict[str, Any] = {
    "cache_salt": "salt",
    "vllm_xargs": {"a": 1},
    "watermarking": True,
    "kv_transfer_params": {"do_remote_decode": True},
}


@pytest.mark.parametrize("name", OF_ENGINES)
async def test_a_message_takes_the_engines_parameters(name: str) -> None:
    given = {name: OF_ENGINES[name]}
    request = parse_body(MessageBody, claude(**given)).request()
    assert request.sampling.extra == given
    engine = SimulatedEngine("sim")
    await engine.start()
    with pytest.raises(RequestError) as caught:
        _ = [delta async for delta in engine.chat(request)]
    assert (caught.value.status, caught.value.param) == (400, name)
    await engine.stop()


OF_SDKS = {
    ("ChatBody", "messages"): "openai.types.chat:ChatCompletionAssistantMessageParam",
    ("ChatBody", "messages.content (text)"): "openai.types.chat:ChatCompletionContentPartTextParam",
    ("ChatBody", "messages.content (image_url)"): (
        "openai.types.chat:ChatCompletionContentPartImageParam"
    ),
    ("ChatBody", "messages.tool_calls"): (
        "openai.types.chat:ChatCompletionMessageFunctionToolCallParam"
    ),
    ("ChatBody", "tools (function)"): "openai.types.chat:ChatCompletionFunctionToolParam",
    ("ChatBody", "tools.function"): "openai.types.shared_params:FunctionDefinition",
    ("ChatBody", "tools (custom)"): "openai.types.chat:ChatCompletionCustomToolParam",
    ("ChatBody", "response_format (json_schema)"): (
        "openai.types.shared_params:ResponseFormatJSONSchema"
    ),
    ("ResponseBody", "input (message)"): "openai.types.responses:ResponseOutputMessageParam",
    (
        "ResponseBody",
        "input (function_call)",
    ): "openai.types.responses:ResponseFunctionToolCallParam",
    ("ResponseBody", "input (reasoning)"): "openai.types.responses:ResponseReasoningItemParam",
    ("ResponseBody", "input (function_call_output)"): (
        "openai.types.responses.response_input_item_param:FunctionCallOutput"
    ),
    ("ResponseBody", "input.content (input_text)"): (
        "openai.types.responses:ResponseInputTextParam"
    ),
    ("ResponseBody", "input.content (output_text)"): (
        "openai.types.responses:ResponseOutputTextParam"
    ),
    ("ResponseBody", "input.content (input_image)"): (
        "openai.types.responses:ResponseInputImageParam"
    ),
    ("ResponseBody", "tools (function)"): "openai.types.responses:FunctionToolParam",
    ("ResponseBody", "tools (custom)"): "openai.types.responses:CustomToolParam",
    ("MessageBody", "messages"): "anthropic.types.user_message_param:UserMessageParam",
    ("MessageBody", "messages.content (text)"): "anthropic.types:TextBlockParam",
    ("MessageBody", "messages.content (tool_use)"): "anthropic.types:ToolUseBlockParam",
    ("MessageBody", "messages.content (tool_result)"): "anthropic.types:ToolResultBlockParam",
    ("MessageBody", "messages.content (thinking)"): "anthropic.types:ThinkingBlockParam",
    ("MessageBody", "messages.content (image)"): "anthropic.types:ImageBlockParam",
    ("MessageBody", "tools (custom)"): "anthropic.types:ToolParam",
    ("MessageBody", "output_config.format (json_schema)"): "anthropic.types:JSONOutputFormatParam",
}
REFUSED = {"transformations"}
"""Keys of the SDKs that ask for what is not there."""


def known(form: str, wanted: str) -> Shape:
    return next(
        shape
        for name, one in INSIDE[form].items()
        for place, shape in places(one, name)
        if place == wanted
    )


@pytest.mark.slow
@pytest.mark.parametrize(("at", "of_sdk"), OF_SDKS.items())
def test_the_installed_sdks_have_no_key_that_is_not_known(at: tuple[str, str], of_sdk: str) -> None:
    module, _, name = of_sdk.partition(":")
    shape = known(*at)
    taken = shape.keys.keys() | shape.harmless | shape.only.keys() | REFUSED
    hints = typing.get_type_hints(getattr(import_module(module), name))
    assert hints.keys() <= taken
