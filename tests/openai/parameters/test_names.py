import pytest

from penstock.errors import ContextLengthError, RequestError
from penstock.openai.extensions import ClassifyBody
from penstock.openai.messages_api import MessageBody
from penstock.openai.requests import ChatBody, CompletionBody, EmbeddingBody, parse_body
from penstock.openai.responses_api import ResponseBody
from penstock.serve.api.exchange import in_words_of

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
        (ChatBody, {"messages": ASK}, "messages[1].content", "messages[1].content"),
        (ChatBody, {"messages": ASK}, "image", "messages"),
        (ResponseBody, {"input": "hi"}, "image", "input"),
        (MessageBody, {"messages": ASK, "max_tokens": 5}, "image", "messages"),
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


def test_an_error_of_nothing_that_was_sent_stays_as_it_is():
    error = RequestError("the chat template is missing")
    assert in_words_of(parse_body(ChatBody, {"messages": ASK}), error) is error
