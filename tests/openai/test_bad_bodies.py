"""Bodies that no engine could answer are refused by the place that is wrong, whatever is there."""

from __future__ import annotations

import re
from typing import Any

import pytest

from penstock.errors import RequestError
from penstock.openai.audio import (
    SpeechBody,
    TranscriptionBody,
    TranslationBody,
    as_values,
)
from penstock.openai.embeddings_api import EmbeddingBody
from penstock.openai.extensions import ScoreBody, TokenizeBody
from penstock.openai.media.images import data_in
from penstock.openai.messages_api import MessageBody
from penstock.openai.parameters.body import parse_body
from penstock.openai.requests import ChatBody, CompletionBody
from penstock.openai.responses_api import ResponseBody, input_messages
from penstock.openai.tools import arguments_as_objects

ASK = [{"role": "user", "content": "hi"}]
TOOLS = [{"type": "function", "function": {"name": "a"}}]


def calls(*given: Any) -> dict[str, Any]:
    return {"messages": [*ASK, {"role": "assistant", "tool_calls": list(given)}]}


CHAT = [
    ({"messages": ASK, "tools": TOOLS, "function_call": "none"}, "function_call", "functions"),
    (calls({"type": "function"}), "messages[1].tool_calls[0].function", "needs a 'name'"),
    (calls({"function": {"name": None}}), "messages[1].tool_calls[0].function", "'name'"),
    (calls({"type": "custom", "custom": {}}), "messages[1].tool_calls[0].custom", "'name'"),
]
PART = {"type": "input_image"}
RESPONSES = [
    ([{"type": "reasoning", "summary": [None]}, *ASK], "input[0].summary", "list of objects"),
    ([{"type": "reasoning", "summary": "thought"}, *ASK], "input[0].summary", "list of objects"),
    ([{"type": "reasoning", "content": "thought"}, *ASK], "input[0].content", "list of objects"),
    ([{"role": "user", "content": [PART]}], "input[0].content", "needs its 'image_url'"),
    ([{"role": "user", "content": [{**PART, "image_url": None}]}], "input[0].content", "'image_ur"),
    ([{"role": "user", "content": [{**PART, "image_url": ""}]}], "input[0].content", "'image_url'"),
    ([{"role": "user", "content": [{**PART, "image_url": 5}]}], "input[0].content", "'image_url'"),
    ([{"role": "user", "content": [{"type": None}]}], "input[0].content", "needs a 'type'"),
    ([{"role": "user", "content": [{"type": "input_text"}]}], "input[0].content", "its 'text'"),
]


def image(**source: Any) -> dict[str, Any]:
    return {"type": "image", "source": source}


BLOCKS = [
    (image(type="url", url=None), "messages[0]: an image whose source is of type url needs"),
    (image(type="url"), "needs its 'url'"),
    (image(type="base64", media_type="image/png", data=None), "needs its 'data'"),
    (image(type=None), "messages[0]: an image needs a source of type base64 or url"),
    ({"type": "text"}, "a text block needs a 'text'"),
    ({"type": "text", "text": None}, "a text block needs a 'text'"),
    ({"type": "tool_use", "id": "1", "name": None, "input": {}}, "a tool_use needs a 'name'"),
]


def refusal(form: Any, body: dict[str, Any]) -> RequestError:
    with pytest.raises(RequestError) as caught:
        parse_body(form, body).request()
    return caught.value


@pytest.mark.parametrize(("body", "param", "told"), CHAT)
def test_chats(body: dict[str, Any], param: str, told: str) -> None:
    error = refusal(ChatBody, body)
    assert error.param == param
    assert told in str(error)


@pytest.mark.parametrize(("given", "param", "told"), RESPONSES)
def test_responses(given: list[dict[str, Any]], param: str, told: str) -> None:
    error = refusal(ResponseBody, {"input": given})
    assert error.param == param
    assert told in str(error)


@pytest.mark.parametrize(("block", "told"), BLOCKS)
def test_messages(block: dict[str, Any], told: str) -> None:
    messages = [{"role": "user", "content": [block]}]
    error = refusal(MessageBody, {"messages": messages, "max_tokens": 5})
    assert error.param == "messages[0]"
    assert told in str(error)


def test_more_texts_than_a_request_may_have() -> None:
    assert len(parse_body(EmbeddingBody, {"input": ["a"] * 2048}).request().inputs) == 2048
    error = refusal(EmbeddingBody, {"input": ["a"] * 2049})
    assert error.param == "input"
    assert "at most 2,048" in str(error)
    with pytest.raises(RequestError, match="at most 65,536 go into a request"):
        parse_body(CompletionBody, {"prompt": ["x"] * 65_537}).requests()


@pytest.mark.parametrize(
    ("form", "name", "meant"),
    [
        (ResponseBody, "max_tokens", "max_output_tokens"),
        (ResponseBody, "messages", "input"),
        (ResponseBody, "response_format", "text.format"),
        (MessageBody, "stop", "stop_sequences"),
        (ChatBody, "temprature", "temperature"),
    ],
)
def test_an_unknown_parameter_is_told_what_was_meant(form: Any, name: str, meant: str) -> None:
    error = refusal(form, {name: 1})
    assert (str(error), error.param) == (
        f"unknown parameter '{name}'. Did you mean '{meant}'?",
        name,
    )


def test_a_whole_number_may_be_written_as_a_float() -> None:
    body = {"messages": ASK, "max_tokens": 16.0, "seed": -1e3, "temperature": 1.0}
    sampling = parse_body(ChatBody, body).request().sampling
    assert (sampling.max_tokens, sampling.seed, sampling.temperature) == (16, -1000, 1.0)
    for value in (16.5, 2.0**60, "16", True):
        error = refusal(ChatBody, {**body, "max_tokens": value})
        assert error.param == "max_tokens"
    assert refusal(ChatBody, {**body, "stop": 2}).param == "stop"


def test_a_message_without_content() -> None:
    body = {"messages": [{"role": "user"}], "max_tokens": 5}
    assert refusal(MessageBody, body).param == "messages[0].content"


@pytest.mark.parametrize(
    ("form", "body"),
    [
        (ResponseBody, {"input": "a", "tools": [{"type": "function", "name": None}]}),
        (MessageBody, {"messages": ASK, "max_tokens": 5, "tools": [{"name": ""}]}),
    ],
)
def test_a_tool_without_a_name_is_named_as_it_was_sent(form: Any, body: dict[str, Any]) -> None:
    assert refusal(form, body).param == "tools[0].name"


def test_a_choice_of_a_tool_without_its_name() -> None:
    body = {"messages": ASK, "max_tokens": 5, "tools": [{"name": "a"}]}
    error = refusal(MessageBody, {**body, "tool_choice": {"type": "tool", "name": None}})
    assert error.param == "tool_choice.name"


@pytest.mark.parametrize("arguments", [{}, {"arguments": None}, {"arguments": "null"}])
def test_a_call_without_arguments_has_none(arguments: dict[str, Any]) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "a", **arguments}}
    (message,) = arguments_as_objects([{"role": "assistant", "tool_calls": [call]}])
    assert message["tool_calls"][0]["function"] == {"name": "a", "arguments": {}}


def test_nulls_within_items_are_nothing() -> None:
    item = {"type": "reasoning", "summary": None, "content": None}
    assert input_messages([item, *ASK]) == ASK
    use = {"type": "tool_use", "id": "1", "name": "a", "input": None}
    body = {"messages": [*ASK, {"role": "assistant", "content": [use]}], "max_tokens": 5}
    made = parse_body(MessageBody, body).request().messages
    assert made[1]["tool_calls"][0]["function"]["arguments"] == "{}"


def test_reasoning_before_each_of_two_calls_stays_with_their_message() -> None:
    items: list[dict[str, Any]] = [
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "o"}]},
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "ne"}]},
        {"type": "function_call", "call_id": "a", "name": "f", "arguments": "{}"},
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": " two"}]},
        {"type": "function_call", "call_id": "b", "name": "f", "arguments": "{}"},
        {"role": "assistant", "content": "done"},
    ]
    turn, done = input_messages(items)
    assert [call["id"] for call in turn["tool_calls"]] == ["a", "b"]
    assert turn["reasoning"] == "one two"
    assert done == {"role": "assistant", "content": "done"}


@pytest.mark.parametrize(
    ("uri", "told"),
    [
        ("data:image/png,abc", "'data:image/png,…' is not marked as base64, and holds no image"),
        ("data:image/png;base64,", "has no data"),
        ("data:image/png;base64", "has no data"),
        ("data:image/png;base64,?", "is no base64"),
    ],
)
def test_data_uris(uri: str, told: str) -> None:
    with pytest.raises(RequestError, match=re.escape(told)) as caught:
        data_in(uri, "messages")
    assert caught.value.param == "messages"
    assert data_in("data:image/gif,GIF89a%00", "messages") == b"GIF89a\0"


@pytest.mark.parametrize("voice", [{}, {"id": None}, {"name": "x"}, {"id": "x", "b": 1}])
def test_a_voice_is_a_name_or_has_an_id(voice: dict[str, Any]) -> None:
    assert refusal(SpeechBody, {"input": "a", "voice": voice}).param == "voice"
    assert parse_body(SpeechBody, {"input": "a", "voice": {"id": "x"}}).request().voice == "x"


@pytest.mark.parametrize(
    ("name", "value", "default"),
    [
        ("tools", TOOLS, []),
        ("chat_template_kwargs", {"a": 1}, {}),
        ("continue_final_message", True, False),
        ("add_generation_prompt", False, True),
    ],
)
def test_a_text_is_tokenized_without_a_chats_options(name: str, value: Any, default: Any) -> None:
    error = refusal(TokenizeBody, {"prompt": "a", name: value})
    assert error.param == name
    parse_body(TokenizeBody, {"prompt": "a", name: default}).request()
    parse_body(TokenizeBody, {"messages": ASK, name: value}).request()


@pytest.mark.parametrize(
    ("form", "body"),
    [(ScoreBody, {"text_1": "a", "text_2": "b"}), (EmbeddingBody, {"input": "a"})],
)
def test_raw_numbers_are_refused(form: Any, body: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match="use_activation is not supported"):
        parse_body(form, {**body, "use_activation": False})
    parse_body(form, {**body, "use_activation": None})


# Forms
def transcription(*fields: tuple[str, Any], form: Any = TranscriptionBody) -> Any:
    return parse_body(form, as_values([("file", b""), *fields]))


def test_texts_of_a_form_become_values() -> None:
    body = transcription(
        ("model", "5"),
        ("prompt", "true"),
        ("language", ""),
        ("stream", "True"),
        ("max_completion_tokens", "7"),
        ("temperature", "0.0"),
        ("timestamp_granularities[]", "word"),
        ("timestamp_granularities[]", "segment"),
    )
    assert (body.model, body.prompt, body.language, body.stream) == ("5", "true", None, True)
    assert (body.max_completion_tokens, body.temperature) == (7, 0)
    assert body.timestamp_granularities == ["word", "segment"]
    assert not transcription(("stream", "0")).stream
    with pytest.raises(RequestError, match="stream must be"):
        transcription(("stream", "1"), ("stream[]", "x"))


@pytest.mark.parametrize(
    ("name", "value", "param"),
    [
        ("stream", "x", "stream"),
        ("stream", "2", "stream"),
        ("max_tokens", "0", "max_tokens"),
        ("max_tokens", "5.5", "max_tokens"),
        ("temperature", "0.5", "temperature"),
        ("temperature", "warm", "temperature"),
        ("response_format", "xml", "response_format"),
        ("timestamp_granularities[]", "letter", "timestamp_granularities[0]"),
        ("use_beam_search", "true", "use_beam_search"),
        ("repetition_penalty", "1.1", "repetition_penalty"),
        ("include[]", "logprobs", "include"),
        ("to_language", "de", "to_language"),
        ("unheard_of", "1", "unheard_of"),
    ],
)
def test_what_a_form_asks_for_in_vain_is_refused(name: str, value: str, param: str) -> None:
    for form in (TranscriptionBody, TranslationBody):
        with pytest.raises(RequestError) as caught:
            transcription((name, value), form=form)
        assert caught.value.param == param


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("use_beam_search", "false"),
        ("repetition_penalty", "1.0"),
        ("frequency_penalty", "0"),
        ("seed", "5"),
        ("stream_include_usage", "true"),
        ("vllm_xargs", "{}"),
        ("temperature", "null"),
        ("unheard_of", ""),
    ],
)
def test_defaults_and_harmless_fields_of_a_form_are_accepted(name: str, value: str) -> None:
    transcription((name, value))


def test_translations_are_english() -> None:
    transcription(("to_language", "en"), form=TranslationBody)
    with pytest.raises(RequestError, match="to_language is not supported but for `en`"):
        transcription(("to_language", "de"), form=TranslationBody)
