"""The engine's own process, `python -m penstock.engines.openvino.worker FD PARENT`. It reads
messages, steps the model, answers.

One thread does everything, because a step holds the interpreter lock: between two steps the pipe is
read without waiting, and while there is nothing to step it is waited for. The process ends when the
pipe closes.
"""

from __future__ import annotations

import signal
import socket
import sys
from typing import Any

import msgspec

from penstock.engines.base import Capabilities
from penstock.engines.openvino.options import Load, ToWorker, decode_to_worker, reason_of
from penstock.engines.process import (
    LENGTH_BYTES,
    Abort,
    Call,
    Failed,
    Ready,
    Reply,
    Step,
    Submit,
    ToParent,
    encode,
    end_with_parent,
    refusal_of,
)
from penstock.errors import EngineStartError, PenstockError

_READ_SIZE = 1 << 20


class Pipe:
    """The worker's end of the socket pair."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._buffer = bytearray()

    def read(self, wait: bool) -> list[ToWorker | Failed]:
        """All messages that are there; with `wait`, at least one. In the place of one that cannot
        be read stands the answer to it. Raises `EOFError` once the parent is gone.
        """
        messages: list[ToWorker | Failed] = []
        while True:
            try:
                data = self._socket.recv(
                    _READ_SIZE, 0 if wait and not messages else socket.MSG_DONTWAIT
                )
            except BlockingIOError:
                return messages
            if not data:
                raise EOFError
            self._buffer += data
            at = 0
            while len(self._buffer) - at >= LENGTH_BYTES:
                end = (
                    at
                    + LENGTH_BYTES
                    + int.from_bytes(self._buffer[at : at + LENGTH_BYTES], "little")
                )
                if len(self._buffer) < end:
                    break
                messages.append(_decoded(self._buffer[at + LENGTH_BYTES : end]))
                at = end
            del self._buffer[:at]

    def write(self, messages: list[ToParent]) -> None:
        """Send messages in one write. Waits if the parent does not keep up."""
        parts: list[bytes] = []
        for message in messages:
            data = encode(message)
            parts += (len(data).to_bytes(LENGTH_BYTES, "little"), data)
        self._socket.sendall(b"".join(parts))


def _decoded(data: bytearray) -> ToWorker | Failed:
    try:
        message: ToWorker = decode_to_worker(data)
        return message
    except msgspec.ValidationError:
        return refusal_of(data)


def main(fd: int, parent: int) -> None:
    """Serve the pipe `fd` to the process `parent` until it closes."""
    end_with_parent(fd, parent)
    # Ctrl-C is the parent's business: it drains, then closes the pipe.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pipe = Pipe(socket.socket(fileno=fd))
    try:
        load, *early = pipe.read(wait=True)
        assert isinstance(load, Load)
        try:
            model, ready = _load(load)
        except Exception as error:
            kind = error.kind if isinstance(error, PenstockError) else EngineStartError.kind
            pipe.write([Failed(0, kind, reason_of(error))])
            return
        pipe.write([ready])
        if early:  # it came with the first message
            _turn(pipe, model, early)
        while True:
            _turn(pipe, model, pipe.read(wait=not model.busy))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


def _load(load: Load) -> tuple[Any, Ready]:
    if load.task != "generate":
        # Other pipelines: most workers never need them.
        from penstock.engines.openvino.tasks import load_task

        return load_task(load)
    from penstock.engines.openvino.generation import Generation

    model = Generation(load.path, load.options, load.context_length)
    capabilities = Capabilities(
        tasks=frozenset({"chat", "completions", "tokenize", "detokenize"}),
        context_length=load.context_length,
        max_concurrency=load.options.max_num_seqs,
        structured=frozenset({"json_schema", "json_object", "regex"}),
        max_top_logprobs=0,
        adapters=True,
        prefix_caching=load.options.enable_prefix_caching,
    )
    return model, Ready(capabilities, model.chat_template(), model.special_tokens())


def _turn(pipe: Pipe, model: Any, arrived: list[ToWorker | Failed]) -> None:
    """Take what has arrived, then let the model make one step."""
    out: list[ToParent] = []
    submits: list[Submit] = []
    embeds: list[Call] = []
    for message in arrived:
        match message:
            case Submit():
                submits.append(message)
            case Abort(id=request_id):
                submits = [s for s in submits if s.id != request_id]
                model.abort(request_id)
            case Call(method="embed"):
                embeds.append(message)
            case Call():
                out.append(_answer(model, message))
            case Failed():
                out.append(message)
    if submits:
        out += model.submit(submits)
    if embeds:
        out += model.embed_together(embeds)
    if model.busy:
        deltas, failures = model.step()
        if deltas:
            out.append(Step(deltas))
        out += failures
    if out:
        pipe.write(out)


def _answer(model: Any, call: Call) -> ToParent:
    try:
        return Reply(call.id, getattr(model, call.method)(*call.args))
    except PenstockError as error:
        return Failed(call.id, error.kind, str(error))
    except Exception as error:
        return Failed(call.id, "engine_error", reason_of(error))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
