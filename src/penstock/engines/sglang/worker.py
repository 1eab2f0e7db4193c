"""SGLang's own process, `python -m penstock.engines.sglang.worker FD PARENT`: its engine and the
pipe, on one event loop.

SGLang gives each output to the coroutine of its request. The deltas of one turn of the loop leave
in one message. The process ends when the pipe closes, and SGLang's processes end with it.
"""

from __future__ import annotations

import asyncio
import io
import os
import socket
import sys
from typing import Any

import msgspec

from penstock.engines.process import (
    LENGTH_BYTES,
    Abort,
    Call,
    Failed,
    Reply,
    Step,
    Submit,
    ToParent,
    encode,
    end_with_parent,
    leave_signals_to_parent,
    refusal_of,
)
from penstock.engines.sglang.options import Load
from penstock.errors import EngineError, EngineStartError, PenstockError
from penstock.types import Delta

ToWorker = Load | Submit | Abort | Call
_decode = msgspec.msgpack.Decoder(ToWorker).decode


class Worker:
    """Serves one pipe with one model."""

    def __init__(
        self, model: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._model = model
        self._reader = reader
        self._writer = writer
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._made: list[tuple[int, Delta]] = []

    async def serve(self) -> None:
        """Answer until the pipe closes."""
        while (message := await read(self._reader)) is not None:
            match message:
                case Submit():
                    self._begin(message.id, self._generate(message))
                case Abort(id=request_id):
                    if (task := self._tasks.get(request_id)) is not None:
                        task.cancel()
                case Call():
                    self._begin(message.id, self._answer(message))
                case Failed():
                    self._send(message)

    def _begin(self, number: int, work: Any) -> None:
        task = self._tasks[number] = asyncio.create_task(work)
        task.add_done_callback(lambda _: self._tasks.pop(number, None))

    async def _generate(self, submit: Submit) -> None:
        try:
            async for delta in self._model.generate(submit):
                if not self._made:
                    asyncio.get_running_loop().call_soon(self._flush)
                self._made.append((submit.id, delta))
        except Exception as error:
            self._flush()
            self._send(_failed(submit.id, error))

    async def _answer(self, call: Call) -> None:
        try:
            self._send(Reply(call.id, await getattr(self._model, call.method)(*call.args)))
        except Exception as error:
            self._send(_failed(call.id, error))

    def _flush(self) -> None:
        made, self._made = self._made, []
        if made:
            self._send(Step(made))

    def _send(self, message: ToParent) -> None:
        self._writer.write(framed(message))


async def read(reader: asyncio.StreamReader) -> ToWorker | Failed | None:
    """The next message, or the answer to one that cannot be read; None once the parent is gone."""
    try:
        length = int.from_bytes(await reader.readexactly(LENGTH_BYTES), "little")
        data = await reader.readexactly(length)
    except (asyncio.IncompleteReadError, ConnectionResetError):
        return None
    try:
        message: ToWorker = _decode(data)
        return message
    except msgspec.ValidationError:
        return refusal_of(data)


def framed(message: ToParent) -> bytes:
    """A message as it goes over the pipe."""
    data = encode(message)
    return len(data).to_bytes(LENGTH_BYTES, "little") + data


def main(fd: int, parent: int) -> None:
    """Serve the pipe `fd` to the process `parent` until it closes."""
    end_with_parent(fd, parent)
    leave_signals_to_parent()
    # Stdout may be a job's output, and SGLang prints.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    assert isinstance(sys.stdout, io.TextIOWrapper)
    sys.stdout.reconfigure(line_buffering=True)  # as standard error: a log in order
    sock = socket.socket(fileno=fd)
    try:
        # Before there is a loop: SGLang sets whose loops are made, and looks for the current one.
        from penstock.engines.sglang.model import Model
    except Exception as error:
        sock.sendall(framed(_not_loaded(error)))
        return
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    reader, writer = loop.run_until_complete(asyncio.open_connection(sock=sock))
    load = loop.run_until_complete(read(reader))
    if not isinstance(load, Load):
        return
    try:
        # In the main thread and while the loop stands still: SGLang sets signal handlers, and runs
        # the loop itself.
        model = Model(load)
        ready = model.ready()
    except Exception as error:
        writer.write(framed(_not_loaded(error, f"'{load.model}' could not be loaded: ")))
        writer.close()
        loop.run_until_complete(writer.wait_closed())
        os._exit(1)  # SGLang may have left threads behind
    writer.write(framed(ready))
    loop.run_until_complete(Worker(model, reader, writer).serve())
    model.close()
    os._exit(0)


def _not_loaded(error: Exception, what: str = "") -> Failed:
    return _failed(0, error, EngineStartError.kind, what)


def _failed(number: int, error: Exception, kind: str = EngineError.kind, what: str = "") -> Failed:
    """The message about an error, which is of `kind` unless it is one of ours."""
    text = what + (" ".join(str(error).split()) or type(error).__name__)
    if isinstance(error, PenstockError):
        return Failed(number, error.kind, text, error.param)
    return Failed(number, kind, text)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
