"""A server that has no file descriptor left for a connection."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from typing import Any

import pytest

from penstock.serve.http_server import listen, say_or_pass_on


def used_up(self: socket.socket) -> Any:
    """Stands for `socket.accept`."""
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


async def test_it_says_so_in_one_line_and_tries_again_later(monkeypatch, caplog):
    faults: list[dict[str, Any]] = []
    told = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_fault(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        faults.append(context)
        told.set()

    loop.set_exception_handler(on_fault)
    monkeypatch.setattr(socket.socket, "accept", used_up)
    listening = listen("127.0.0.1", 0)
    server = await loop.create_server(asyncio.Protocol, sock=listening)
    with socket.create_connection(listening.getsockname()):
        await told.wait()
    assert len(faults) == 1  # in spite of a backlog of 100
    say_or_pass_on(None, loop, faults[0])
    assert [(record.levelname, record.exc_info) for record in caplog.records] == [("ERROR", None)]
    assert "Too many open files" in caplog.text
    assert "ulimit -n" in caplog.text
    server.close()


@pytest.mark.parametrize("error", [OSError(errno.EMFILE, "elsewhere"), ValueError("other")])
async def test_other_faults_go_to_who_was_asked_before(error):
    passed: list[dict[str, Any]] = []
    context = {"message": "a task failed", "exception": error}
    loop = asyncio.get_running_loop()
    say_or_pass_on(lambda _, one: passed.append(one), loop, context)
    assert passed == [context]


async def test_a_connection_is_accepted_after_one_that_could_not_be(monkeypatch):
    listening = listen("127.0.0.1", 0)
    with monkeypatch.context() as patch:
        patch.setattr(socket.socket, "accept", used_up)
        with pytest.raises(OSError, match="Too many"):
            listening.accept()
    with socket.create_connection(listening.getsockname()), listening:
        with pytest.raises(BlockingIOError):  # ends asyncio's tries
            listening.accept()
        listening.accept()[0].close()
