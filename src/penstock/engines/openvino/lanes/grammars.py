"""Requests that wait for their grammars to be compiled, before they wait in their lanes."""

from __future__ import annotations

from collections.abc import Collection
from concurrent.futures import Future, wait

from penstock.engines.openvino.constraints.grammar_cache import Compiling
from penstock.engines.openvino.lanes.lane import Lane
from penstock.engines.openvino.lanes.request import Request
from penstock.engines.openvino.options import reason_of
from penstock.engines.process import Failed
from penstock.errors import RequestError

_COMPILING_WAIT_SECONDS = 0.002
"""How long a turn waits for a grammar where there is nothing else to do."""


class GrammarQueue:
    """The requests of all lanes that wait for a grammar. With `background` a thread compiles."""

    def __init__(self, *, background: bool) -> None:
        self._compiling = Compiling(background)
        self._waiting: dict[Request, tuple[Lane, Future[None] | None]] = {}

    @property
    def busy(self) -> bool:
        return bool(self._waiting)

    def queue(self, lane: Lane, request: Request) -> None:
        """Let a request wait for a slot; one with a new grammar waits for that first."""
        structured = request.sampling.structured
        if structured is None:
            lane.queue_of(request).append(request)
            return
        assert lane.grammars is not None
        if lane.grammars.ready(structured.spec):
            lane.queue_of(request).append(request)
        else:  # many are forgotten first, for which nothing may be under way
            start = self._compiling.start
            self._waiting[request] = (
                lane,
                None if lane.grammars.many else start(lane.grammars, structured.spec),
            )

    def turn(self, lanes: Collection[Lane]) -> list[tuple[Request, Failed]]:
        """Let requests go on whose grammars are ready. Waits a moment if nothing else runs. Gives
        those whose grammars cannot be compiled.
        """
        futures = [future for _, future in self._waiting.values() if future is not None]
        serving = any(lane.busy for lane in lanes)
        self._compiling.go_on(serving)
        if futures and not serving:
            wait(futures, _COMPILING_WAIT_SECONDS, "FIRST_COMPLETED")
        failures: list[tuple[Request, Failed]] = []
        for request, (lane, future) in list(self._waiting.items()):
            if future is None or not future.done():
                continue
            del self._waiting[request]
            if (error := future.exception()) is None:
                lane.queue_of(request).append(request)
            else:
                why = f"the constraint cannot be compiled: {reason_of(error)}"
                failures.append((request, Failed(request.id, RequestError.kind, why)))
        if self._compiling.idle:
            self._forget_many(lanes)
        return failures

    def forget(self, request: Request) -> bool:
        """Give a request up. Returns whether it waited here."""
        waited = self._waiting.pop(request, None)
        if waited is not None and waited[1] is not None:
            waited[1].cancel()
        return waited is not None

    def _forget_many(self, lanes: Collection[Lane]) -> None:
        """Forget the grammars of lanes that have many, and begin with those that waited."""
        for lane in lanes:
            if lane.grammars is not None and lane.grammars.many:
                lane.grammars.forget()
                waiting = [*lane.waiting, *lane.batch_waiting]
                for request in [r for r in waiting if r.sampling.structured is not None]:
                    lane.queue_of(request).remove(request)
                    self.queue(lane, request)
        for request, (lane, future) in list(self._waiting.items()):
            if future is None:
                del self._waiting[request]
                self.queue(lane, request)
