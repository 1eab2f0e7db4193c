"""Chunks of a scripted server that are handed on unread."""

import pytest

from penstock.errors import (
    UpstreamError,
)
from penstock.testing import chat_request, deltas_of
from penstock.types import (
    Usage,
)
from scripted_api import USAGE, chunk, remote, sse

HEAD = b'{"id":"x","object":"chat.completion.chunk","created":1,"model":"m","choices":['


def piece(text, reason=b"null", rest=b"]}"):
    return b'{"index":0,"delta":{"content":"%b"},"finish_reason":%b}%b' % (text, reason, rest)


def forwarded(deltas):
    return [chunk for delta in deltas for chunk in delta.chunks]


async def test_chunks_are_handed_on_unread_where_the_caller_takes_them(script):
    role = b'{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}'
    plain = [piece(b"a"), piece(b'\\"finish_reason\\":\\"stop'), piece(b"b", rest=b'],"extra":1}')]
    last = piece(b"c", b'"stop"')
    script.answers = [sse(*[HEAD + one for one in (role, *plain, last)], USAGE)]
    async with remote(script) as engine:
        deltas = await deltas_of(engine, chat_request("hi", forward_chunks=True))
    assert forwarded(deltas) == plain
    assert (deltas[-1].text, deltas[-1].finish_reason, deltas[-1].usage) == (
        "c",
        "stop",
        Usage(5, 2),
    )
    assert all(not delta.text for delta in deltas[:-1])


@pytest.mark.parametrize(
    "events",
    [
        [piece(b"a").join([HEAD, b""]), b'{"created":2,' + HEAD[1:] + piece(b"b")],  # another head
        [b'{"choices":[]}', HEAD + b'{"index":0,"delta":{"content":"ab"}}]}'],  # no reason at all
        [HEAD + piece(b"a"), HEAD.replace(b'"choices"', b'"choices" ') + piece(b"b")],
    ],
)
async def test_chunks_of_another_form_are_read(script, events):
    script.answers = [sse(*events, HEAD + piece(b"", b'"stop"'))]
    async with remote(script) as engine:
        deltas = await deltas_of(engine, chat_request("hi", forward_chunks=True))
    chunks = b"".join(forwarded(deltas))
    read = "".join(delta.text for delta in deltas)
    assert chunks.count(b'"content":"a"') + read.count("a") == 1
    assert read.endswith("b")


async def test_a_list_where_clients_expect_text_is_read(script):
    parts = b'{"index":0,"delta":{"content":[{"type":"text","text":"b"}]},"finish_reason":null}]}'
    script.answers = [sse(HEAD + piece(b"a"), HEAD + parts, HEAD + piece(b"", b'"stop"'))]
    async with remote(script) as engine:
        deltas = await deltas_of(engine, chat_request("hi", forward_chunks=True))
    assert forwarded(deltas) == [piece(b"a")]
    assert "".join(delta.text for delta in deltas) == "b"


async def test_arguments_that_are_an_object_are_read(script):
    call = (
        b'{"index":0,"delta":{"tool_calls":[{"index":0,"id":"c","function":{"name":"f","arguments":{"a":1}}}]},'
        b'"finish_reason":null}]}'
    )
    script.answers = [sse(HEAD + call, HEAD + piece(b"", b'"tool_calls"'))]
    async with remote(script) as engine:
        deltas = await deltas_of(engine, chat_request("hi", forward_chunks=True))
    assert not forwarded(deltas)
    assert [part.arguments for delta in deltas for part in delta.tool_calls] == ['{"a":1}']


@pytest.mark.parametrize("fields", [{"n": 2}, {}], ids=["several answers", "not asked for"])
async def test_chunks_are_read_where_somebody_needs_to_know(script, fields):
    end = [chunk(index, reason="stop") for index in range(fields.get("n", 1))]
    script.answers = [sse(HEAD + piece(b"a"), *end)]
    async with remote(script) as engine:
        deltas = await deltas_of(engine, chat_request("hi", forward_chunks=bool(fields), **fields))
    assert not forwarded(deltas)
    assert "".join(delta.text for delta in deltas) == "a"


async def test_a_stream_that_breaks_after_a_chunk_handed_on_is_not_tried_again(script):
    script.answers = [sse(HEAD + piece(b"a"), end="cut")]
    async with remote(script) as engine:
        stream = engine.chat(chat_request("hi", forward_chunks=True))
        assert (await anext(stream)).chunks == (piece(b"a"),)
        with pytest.raises(UpstreamError):
            await anext(stream)
    assert len(script.asked) == 1
