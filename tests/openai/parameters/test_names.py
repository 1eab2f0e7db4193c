import pytest

from penstock.errors import ContextLengthError, RequestError
from penstock.openai.decisions.openai_form import DecisionBody
from penstock.openai.embeddings_api import EmbeddingBody
from penstock.openai.extensions import ClassifyBody
from penstock.openai.messages_api import MessageBody
from penstock.openai.parameters.body import parse_body
from penstock.openai.parameters.names import in_words_of
from penstock.openai.requests import ChatBody, CompletionBody
from penstock.openai.responses_api import ResponseBody

ASK = [{"role": "user", "content": "hi"}]
BODIES = {
    "chat": (ChatBody, {"messages": ASK}, "messages"),
    "completion": (CompletionBody, {"prompt": "hi"}, "prompt"),
    "responses": (ResponseBody, {"input": "hi"}, "input"),
    "messages": (MessageBody, {"messages": ASK, "max_tokens": 5}, "messages"),
    "embedding": (EmbeddingBody, {"input": "hi"}, "input"),
}


@pytest.mark.parametrize(("form", "body", "name"), BODIES.values(), ids=BODIES)
def test_a_long_prompt_has_the_name_that_the_api_gives_it(form, body, name):
    error = ContextLengthError("prompt is too long")
    shown = in_words_of(parse_body(form, body), error)
    assert (shown.param, str(shown)) == (name, "prompt is too long")
    assert error.param is None


@pytest.mark.parametrize(
    ("form", "body", "given", "shown"),
    [
        (
            ChatBody,
            {"messages": ASK, "max_completion_tokens": 0},
            "max_tokens",
            "max_completion_tokens",
        ),
        (ResponseBody, {"input": "hi"}, "max_tokens", "max_output_tokens"),
        (ResponseBody, {"input": "hi"}, "messages[1].content", "input"),
        (ClassifyBody, {"input": "hi"}, "questions[0]", "labels"),
        (ResponseBody, {"input": "hi"}, "messages[1].content[2]", "input"),
        (ChatBody, {"messages": ASK}, "messages[1].content[2]", "messages[1].content[2]"),
        (DecisionBody, {"input": "hi", "questions": []}, "messages", "input"),
        (EmbeddingBody, {"input": [{"image": "a"}]}, "messages[0].content[0]", "input"),
        (EmbeddingBody, {"input": ["hi", {"image": "a"}]}, "input[1]", "input[1]"),
        (EmbeddingBody, {"messages": ASK}, "messages[0].content[0]", "messages[0].content[0]"),
        (EmbeddingBody, {"messages": [ASK, ASK]}, "input[1]", "messages[1]"),
        (MessageBody, {"messages": ASK, "max_tokens": 5}, "stop", "stop_sequences"),
        (CompletionBody, {"prompt": "hi"}, "top_logprobs", "logprobs"),
        (CompletionBody, {"prompt": "hi"}, "temperature", "temperature"),
    ],
)
def test_an_error_names_what_was_sent(form, body, given, shown):
    error = RequestError(f"{given} must be at least 1", param=given)
    found = in_words_of(parse_body(form, body), error)
    assert found.param == shown
    if "_" in given:  # others are words of plain text, too
        assert str(found) == f"{shown} must be at least 1"


TURNS = [
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "f", "input": {}}]},
    {
        "role": "user",
        "content": [
            {"type": "tool_result", "tool_use_id": "a", "content": "1"},
            {"type": "tool_result", "tool_use_id": "b", "content": "2"},
            {"type": "text", "text": "and now?"},
        ],
    },
    {"role": "user", "content": [{"type": "text", "text": "well?"}]},
]


@pytest.mark.parametrize(("system", "places"), [(None, []), ("Be brief.", ["system"])])
def test_an_error_of_a_chat_message_names_the_turn_that_it_was_made_of(system, places):
    body = parse_body(MessageBody, {"messages": TURNS, "system": system, "max_tokens": 5})
    assert body.request().messages[-1]["content"][0]["text"] == "well?"
    places = places + [f"messages[{number}]" for number in (0, 1, 2, 2, 2, 3)]
    assert len(body.request().messages) == len(places)
    for made, place in enumerate(places):
        where = f"messages[{made}].content[1]"  # parts have an index of their own here
        shown = in_words_of(body, RequestError(f"{where}: no 'video'", param=where))
        assert (shown.param, str(shown)) == (f"{place}.content", f"{place}.content: no 'video'")


def test_an_error_of_a_message_that_was_never_sent_stays_as_it_is():
    body = parse_body(MessageBody, {"messages": TURNS, "max_tokens": 5})
    where = "messages[99].content"  # as another server has it
    shown = in_words_of(body, RequestError(f"{where}: no", param=where))
    assert (shown.param, str(shown)) == (where, f"{where}: no")


def test_a_turn_that_cannot_be_read_is_named_as_sent():
    turns = [*TURNS, {"role": "user", "content": [{"type": "video"}]}]
    body = parse_body(MessageBody, {"messages": turns, "system": "Hm.", "max_tokens": 5})
    with pytest.raises(RequestError) as told:
        body.request()
    shown = in_words_of(body, told.value)
    assert shown.param == "messages[4]"
    assert str(shown).startswith("messages[4].content: blocks of type 'video'")


def test_an_error_of_nothing_that_was_sent_stays_as_it_is():
    error = RequestError("the chat template is missing")
    assert in_words_of(parse_body(ChatBody, {"messages": ASK}), error) is error
