import asyncio
from contextlib import asynccontextmanager

import pytest

from penstock.errors import ConfigError
from penstock.loadtest.client import Server


def event(text):
    return b"data: " + text + b"\n\n"


ROLE = event(b'{"choices":[{"delta":{"role":"assistant","content":""}}]}')
PIECE = event(b'{"choices":[{"delta":{"content":"a"}}]}')
LAST = event(b'{"choices":[{"delta":{},"finish_reason":"stop"}]}')
USAGE = event(b'{"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":3}}')
STREAM = ROLE + PIECE + PIECE + LAST + USAGE + event(b"[DONE]")
SSE = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"


def chunked(body, size=1 << 20):
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


def sized(body, status=b"200 OK", kind=b"application/json"):
    head = b"HTTP/1.1 %b\r\nContent-Type: %b\r\nContent-Length: %d\r\n\r\n"
    return head % (status, kind, len(body)) + body


@asynccontextmanager
async def answering(*answers, step=None, keep=True):
    """A server that gives these bytes, one answer a request; None closes the connection."""
    left = list(answers)
    seen = []

    async def handle(reader, writer):
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length:")[2].split()[0])
                seen.append(head + await reader.readexactly(length))
                answer = left.pop(0)
                if answer is None:
                    break
                for at in range(0, len(answer), step or len(answer) or 1):
                    writer.write(answer[at : at + (step or len(answer))])
                    if step:
                        await writer.drain()
                        await asyncio.sleep(0)
                if not keep:
                    break
        except (asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}/v1", seen
    finally:
        server.close()


async def asked(url, times=1, **options):
    server = Server(url, **options)
    request = server.request("/v1/chat/completions", {"model": "m"})
    samples = [await server.ask(request) for _ in range(times)]
    await server.close()
    return samples[-1]


@pytest.mark.parametrize("step", [None, 1, 7])
@pytest.mark.parametrize("size", [1 << 20, 10])
async def test_a_stream_is_read_however_it_is_cut(step, size):
    answer = SSE + b"Transfer-Encoding: chunked\r\n\r\n" + chunked(STREAM, size)
    async with answering(answer, answer, step=step) as (url, seen):
        sample = await asked(url, times=2, api_key="k")
    assert sample.error is None, sample.why
    assert (sample.pieces, sample.input_tokens, sample.output_tokens) == (2, 5, 3)
    assert len(sample.gaps) == 1
    assert sample.due <= sample.sent <= sample.first <= sample.last <= sample.end
    assert seen[0].startswith(b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:")
    assert b"Authorization: Bearer k\r\n" in seen[0]
    assert seen[0].endswith(b'\r\n\r\n{"model":"m"}')


async def test_a_stream_without_a_length_ends_with_its_connection():
    async with answering(SSE + b"\r\n" + STREAM, keep=False) as (url, _):
        assert (await asked(url)).error is None


async def test_a_whole_answer():
    body = b'{"choices":[{"message":{"content":"a"}}],"usage":{"completion_tokens":4}}'
    async with answering(sized(body)) as (url, _):
        sample = await asked(url)
    assert (sample.error, sample.pieces, sample.output_tokens) == (None, 1, 4)
    assert sample.first == sample.end


@pytest.mark.parametrize(
    ("answer", "kind", "why"),
    [
        (
            sized(b'{"error":{"message":"busy"}}', b"429 Too Many Requests"),
            "HTTP 429",
            "busy",
        ),
        (sized(b"bad gateway", b"502 Bad Gateway", b"text/html"), "HTTP 502", "bad gateway"),
        (sized(event(b'{"error":{"message":"x"}}'), kind=b"text/event-stream"), "error event", "x"),
        (sized(ROLE + PIECE, kind=b"text/event-stream"), "cut off", "without a finish reason"),
        (sized(event(b"{"), kind=b"text/event-stream"), "not OpenAI's form", ""),
        (sized(b"<html>"), "not OpenAI's form", ""),
        (sized(b'{"error":{"message":"full","code":503}}'), "error answer", "full"),
        (sized(b'{"id":"x"}'), "not OpenAI's form", "there are no choices"),
        (b"SSH-2.0-x\r\n\r\n", "not HTTP", "SSH-2.0-x"),
        (SSE + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", "not HTTP", ""),
        (None, "disconnected", "closed the connection"),
        (SSE + b"Content-Length: 900\r\n\r\n" + PIECE, "disconnected", "closed the connection"),
    ],
)
async def test_failures_by_kind(answer, kind, why):
    async with answering(answer, keep=False) as (url, _):
        sample = await asked(url)
    assert sample.error == kind
    assert why in sample.why


@pytest.mark.parametrize("size", [1 << 20, 10])
async def test_a_stream_that_fails_in_its_last_event(size):
    faults = []
    asyncio.get_running_loop().set_exception_handler(lambda _, fault: faults.append(fault))
    body = chunked(ROLE + PIECE + event(b'{"error":{"message":"x"}}'), size)
    async with answering(SSE + b"Transfer-Encoding: chunked\r\n\r\n" + body) as (url, _):
        sample = await asked(url)
    assert (sample.error, sample.why, faults) == ("error event", "x", [])


async def test_after_a_refusal_the_connection_is_used_again():
    body = b'{"choices":[{"message":{"content":"a"}}]}'
    async with answering(sized(b"{}", b"429 x"), sized(body)) as (url, _):
        assert (await asked(url, times=2)).error is None


async def test_a_stale_connection_is_no_failure():
    body = sized(b'{"choices":[{"message":{"content":"a"}}]}')
    async with answering(body, None, body) as (url, seen):
        assert (await asked(url, times=2)).error is None
    assert len(seen) == 3


async def test_a_server_that_is_not_there():
    sample = await asked("http://127.0.0.1:1")
    assert (sample.error, sample.why) == ("connect", "Connection refused")


async def test_a_silent_server_is_left_after_the_timeout():
    async with answering(b"") as (url, _):
        sample = await asked(url, timeout_s=0.01)
    assert (sample.error, sample.why) == ("timeout", "no answer in 0.01 s")


@pytest.mark.parametrize("url", ["http://:1", "ftp://a", "http://a:b", "http://"])
def test_wrong_addresses_are_refused(url):
    with pytest.raises(ConfigError, match="URL"):
        Server(url)


def test_a_key_that_no_header_can_have_is_refused():
    with pytest.raises(ConfigError, match="--api-key"):
        Server("http://a", api_key="a\nb")
