"""Requests of Ray's form, as HTTP has them."""

from __future__ import annotations

import io
import json

import pytest
from pydantic import TypeAdapter
from starlette.exceptions import HTTPException
from starlette.requests import Request

from penstock.errors import PenstockError, RequestError, UnsupportedError, UpstreamError
from penstock.openai.audio import as_values
from penstock.serve.compat.forms import batches_of, form_of, request_for, result_of
from penstock.serve.openai_api_models import (
    ChatCompletionRequest,
    ChatCompletionResponse,
    ChatCompletionStreamResponse,
    CompletionStreamResponse,
    OpenAIHTTPException,
    TranscriptionRequest,
)
from penstock.types import ChatRequest, CompletionRequest, EmbeddingRequest

CHAT = [{"role": "user", "content": "hi"}]


async def read(kind, body):
    """The fields of a form as the endpoint reads them, with the bytes of its file."""

    async def receive():
        return {"type": "http.request", "body": body, "more_body": False}

    scope = {"type": "http", "method": "POST", "headers": [(b"content-type", kind.encode())]}
    async with Request(scope, receive).form() as form:
        fields = as_values(form.multi_items())
        return {**fields, "file": await fields["file"].read()}


@pytest.mark.parametrize("made", [bytes, bytearray, io.BytesIO])
@pytest.mark.parametrize("name", ["timestamp_granularities", "timestamp_granularities[]"])
async def test_a_transcription_is_a_form_that_reads_the_same(made, name):
    given = {
        "file": made(b"RIFF"),
        "model": "m",
        "prompt": 'é"\r\nline',
        name: ["word", "segment"],
        "chunking": {"type": "auto"},
        "temperature": 0.5,
        "stream": False,
    }
    expected = {name.removesuffix("[]"): value for name, value in given.items()}
    assert await read(*form_of({**given, "language": None})) == {**expected, "file": b"RIFF"}


def parts(boundary):
    return f'x\r\n--{boundary}\r\nContent-Disposition: form-data; name="model"\r\n\r\nother'


async def test_neither_values_nor_names_make_parts():
    kind, _ = form_of({"file": b""})
    boundary = kind.partition("boundary=")[2]
    given = {"model": "cheap", "prompt": parts(boundary), f'x"{parts(boundary)}': "y"}
    found = await read(*form_of({**given, "file": b"RIFF"}))
    assert (found["model"], found["prompt"]) == ("cheap", given["prompt"])
    assert len(found) == 4


def test_a_file_that_is_none():
    for file in (None, "text"):
        with pytest.raises(RequestError, match="file is missing"):
            form_of({"file": file})


def test_a_conversation_to_embed_is_a_request_of_its_own_form():
    chat = ChatRequest(CHAT, add_generation_prompt=False)
    made = request_for("embeddings", EmbeddingRequest([chat], dimensions=8), "m")
    assert type(made).__name__ == "EmbeddingChatRequest"
    assert made.messages == chat.messages
    assert (made.dimensions, made.add_generation_prompt) == (8, False)
    with pytest.raises(UnsupportedError, match="one conversation at a time"):
        request_for("embeddings", EmbeddingRequest([chat, "a"]), "m")


def test_fields_that_only_vllm_has_read_as_their_defaults():
    chat, heard = ChatCompletionRequest(messages=CHAT), TranscriptionRequest(file=b"RIFF")
    assert (chat.session_id, chat.stream_interval, chat.return_token_offsets) == (None, None, False)
    assert (heard.seed, heard.n, heard.to_language, heard.length_penalty) == (None, 1, None, 1.0)
    assert heard.model_dump(exclude_unset=True) == {"file": b"RIFF"}
    with pytest.raises(AttributeError, match="no_such"):
        _ = heard.no_such


async def read_stream(request, *given):
    """The text and the end of an answer whose author gives these."""

    async def answer():
        for one in given:
            yield one

    found = [delta async for batch in batches_of(answer(), request, "Mine") for delta in batch]
    return "".join(delta.text for delta in found), found[-1].finish_reason


@pytest.mark.parametrize(
    "form",
    [
        lambda chunk: [f"data: {json.dumps(chunk)}\n\n"],
        lambda chunk: [chunk],
        ChatCompletionStreamResponse.model_validate,
    ],
)
async def test_a_stream_consists_of_events_or_objects_and_may_just_end(form):
    chunks = [{"choices": [{"index": 0, "delta": {"content": text}}]} for text in "abc"]
    assert await read_stream(ChatRequest(CHAT), *map(form, chunks)) == ("abc", "stop")


async def test_a_completions_stream_of_objects():
    choices = [{"text": "a"}, {"text": "b", "finish_reason": "length"}]
    given = [CompletionStreamResponse.model_validate({"choices": [one]}) for one in choices]
    assert await read_stream(CompletionRequest("x"), *given) == ("ab", "length")


@pytest.mark.parametrize("stream", [True, False])
async def test_a_whole_response_answers_a_stream_too(stream):
    choice = {"message": {"content": "abc"}, "finish_reason": "length"}
    whole = ChatCompletionResponse.model_validate({"choices": [choice]})
    assert await read_stream(ChatRequest(CHAT, stream=stream), whole) == ("abc", "length")


async def test_an_answer_of_nothing_is_an_error():
    with pytest.raises(UpstreamError, match="Mine: the answer broke off"):
        await read_stream(ChatRequest(CHAT))


class Teapot(Exception):
    status_code = 418


@pytest.mark.parametrize(
    ("raised", "status", "said"),
    [
        (HTTPException(429, "slow down"), 429, "slow down"),
        (OpenAIHTTPException(503, "not now", type="Mine"), 503, "not now"),
        (Teapot("short and stout"), 418, "short and stout"),
        (RequestError("ours", param="n"), 400, "ours"),
    ],
)
@pytest.mark.parametrize("begun", [True, False])
async def test_what_an_author_raises_has_the_status_that_it_tells(raised, status, said, begun):
    async def streamed():
        yield {"choices": [{"delta": {"content": "a"}}]}
        raise raised

    async def refused():
        raise raised

    given = batches_of(streamed() if begun else refused(), ChatRequest(CHAT), "Mine")
    with pytest.raises(PenstockError, match=said) as caught:
        [batch async for batch in given]
    assert caught.value.status == status
    assert caught.value is raised or caught.value.__cause__ is raised


async def test_what_pydantic_refuses_is_the_clients_mistake():
    async def answer():
        return TypeAdapter(dict[str, int]).validate_python({"a": "b"})

    with pytest.raises(RequestError, match="a: Input should be a valid integer"):
        await result_of("tokenize", None, answer(), "Mine")


@pytest.mark.parametrize(
    "raised", [ValueError("inside"), type("Odd", (Exception,), {"status_code": 200})()]
)
async def test_another_error_stays_what_it_is(raised):
    async def answer():
        raise raised

    with pytest.raises(type(raised)) as caught:
        await result_of("tokenize", None, answer(), "Mine")
    assert caught.value is raised
