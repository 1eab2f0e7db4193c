"""Many calls of a replica's server in one, for work that comes in many rows at a time.

A group is `POST /penstock/group` with a list of calls, which one replica answers side by side. The
answer is frames as in `calls`, one for each call, in the order in which they end: its result, for a
generating task its joined deltas; or its error.
"""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from msgspec import Raw, Struct

from penstock.engines.deltas import Batches
from penstock.engines.tasks import TASKS, Tasks, task_of
from penstock.errors import (
    EngineDeadError,
    PenstockError,
    ReplicaLostError,
    ShuttingDownError,
    by_kind,
)
from penstock.serve.replicas.calls import frames, pack
from penstock.serve.replicas.model import RemoteModel
from penstock.serve.replicas.pool import MOST_LOST, error_of
from penstock.types import ChatRequest, CompletionRequest, Delta

GROUP_PATH = "/penstock/group"
MOST_CALLS = 64
"""Calls of a group, if nothing else is said: enough to make the way cheap, few enough to spread
over replicas.
"""
MOST_BYTES = 1 << 20
"""Bytes of a group's requests, unless one alone has more: a replica refuses bodies that are too
large.
"""


class GroupedCall(Struct, frozen=True, array_like=True):
    """A task and its request."""

    task: str
    request: Raw


class CallResult(Struct, frozen=True, array_like=True, tag="result"):
    """What the call of that number in its group gave."""

    number: int
    result: Raw


class CallFailure(Struct, frozen=True, array_like=True, tag="error"):
    """Why the call of that number in its group gave nothing."""

    number: int
    kind: str
    message: str


_decoder = msgspec.msgpack.Decoder(CallResult | CallFailure)
_forms: dict[str, Any] = {
    name: list[Delta] if task.streams else task.result for name, task in TASKS.items()
}


class _Waiting:
    """A call that has no result yet."""

    def __init__(self, task: str, request: Any) -> None:
        self.request = request
        self.call = GroupedCall(task, Raw(pack(request)))
        self.result: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.lost = 0

    def fail(self, error: PenstockError) -> None:
        if not self.result.done():
            self.result.set_exception(error)


class GroupedModel(Tasks):
    """A model whose calls of one turn of the event loop travel together, at most `most` in a group.

    Nothing of an answer is given before it is complete, so what a lost replica has not answered is
    asked again, each call by itself, as one of them may be what ended it. Belongs to one event
    loop.
    """

    def __init__(self, model: RemoteModel, *, most: int = MOST_CALLS) -> None:
        self.model_id = model.model_id
        self._pool = model.pool
        self._most = most
        self._gathering: list[_Waiting] = []
        self._asking: set[asyncio.Task[None]] = set()

    async def generate(self, request: ChatRequest | CompletionRequest) -> Batches:
        """As the model's own, with all deltas at the end."""
        if deltas := await self.answer(task_of(request), request):
            yield deltas

    async def answer(self, task: str, request: Any) -> Any:
        if not self._gathering:  # the others of this turn join before it goes
            asyncio.get_running_loop().call_soon(self._send)
        waiting = _Waiting(task, request)
        self._gathering.append(waiting)
        return await waiting.result

    def _send(self) -> None:
        gathered, self._gathering = self._gathering, []
        group: list[_Waiting] = []
        size = 0
        for waiting in gathered:
            length = len(bytes(waiting.call.request))
            if group and (len(group) >= self._most or size + length > MOST_BYTES):
                self._ask(group)
                group, size = [], 0
            group.append(waiting)
            size += length
        self._ask(group)

    def _ask(self, group: list[_Waiting]) -> None:
        task = asyncio.create_task(self._answer(group))
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)

        def leave(result: asyncio.Future[Any]) -> None:
            if result.cancelled() and all(waiting.result.done() for waiting in group):
                # Nobody waits any more, which the replica learns by the connection's end.
                task.cancel()

        for waiting in group:
            waiting.result.add_done_callback(leave)

    async def _answer(self, group: list[_Waiting]) -> None:
        """Let a replica answer the group, and ask again for what it has not."""
        try:
            await self._exchange(group)
        except (ReplicaLostError, ShuttingDownError):
            pass
        except (
            Exception
        ) as error:  # nobody waits for this task: those who wait for the calls are told
            for waiting in group:
                waiting.fail(
                    error if isinstance(error, PenstockError) else PenstockError(repr(error))
                )
        for waiting in group:
            if waiting.result.done():
                continue
            waiting.lost += 1
            if waiting.lost == MOST_LOST:
                waiting.fail(EngineDeadError(f"{MOST_LOST} replicas were lost with this request"))
            else:
                self._ask([waiting])

    async def _exchange(self, group: list[_Waiting]) -> None:
        body = pack([waiting.call for waiting in group])
        route = self._pool.route_of(group[0].request)
        rest = b""
        async with self._pool.ask(GROUP_PATH, [], body, route, weight=len(group)) as reply:
            if reply.status != 200:
                raise error_of(await reply.body())
            while part := await reply.read():
                complete, rest = frames(rest + part)
                for frame in complete:
                    _settle(group, _decoder.decode(frame))


def _settle(group: list[_Waiting], told: CallResult | CallFailure) -> None:
    waiting = group[told.number]
    if waiting.result.done():  # cancelled meanwhile
        return
    if isinstance(told, CallResult):
        waiting.result.set_result(
            msgspec.msgpack.decode(told.result, type=_forms[waiting.call.task])
        )
        return
    error = by_kind(told.kind, told.message)
    if not isinstance(error, (EngineDeadError, ShuttingDownError)):
        waiting.fail(error)
