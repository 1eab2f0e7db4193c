"""An application of this process, asked as over HTTP."""

from __future__ import annotations

import asyncio

import pytest

from penstock.serve.compat.asking import READ_AHEAD, ask, scope_of


async def start(send):
    await send({"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]})


async def test_an_answer_comes_part_by_part_and_waits_for_its_reader():
    sent = []

    async def app(scope, receive, send):
        assert (await receive())["body"] == b"hello"
        await start(send)
        for number in range(10):
            await send({"type": "http.response.body", "body": b"%d" % number, "more_body": True})
            sent.append(number)
        await send({"type": "http.response.body", "body": b"!"})

    answer = await ask(app, scope_of("/x"), b"hello")
    assert (answer.status, answer.headers["a"]) == (200, "b")
    for _ in range(20):
        await asyncio.sleep(0)
    assert len(sent) == READ_AHEAD
    assert await answer.whole() == b"0123456789!"


async def test_closing_it_is_a_client_that_leaves():
    left = asyncio.Event()

    async def app(scope, receive, send):
        await receive()
        await start(send)
        await send({"type": "http.response.body", "body": b"1", "more_body": True})
        try:
            await asyncio.Event().wait()
        finally:
            left.set()

    answer = await ask(app, scope_of("/x"), b"")
    parts = answer.parts()
    assert await anext(parts) == b"1"
    await parts.aclose()
    assert left.is_set()


@pytest.mark.parametrize("begun", [False, True])
async def test_what_the_application_raises_is_raised(begun):
    async def app(scope, receive, send):
        if begun:
            await start(send)
        raise OSError("broken")

    with pytest.raises(OSError, match="broken"):
        await (await ask(app, scope_of("/x"), b"")).whole()


async def test_an_application_without_an_answer():
    async def app(scope, receive, send):
        pass

    with pytest.raises(RuntimeError, match="no answer"):
        await ask(app, scope_of("/x"), b"")
