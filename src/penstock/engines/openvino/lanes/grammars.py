"""Requests that wait for their grammars to be compiled, before they wait in their lanes. A lane is
the queue and the running requests of one pipeline, such as the base model or the base with an
adapter.
"""

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
"""How long a turn waits for a grammar if nothing else is to be done."""


class GrammarQueue:
    """The requests of all lanes that wait for a grammar. With `background` a thread compiles; else
    `queue` does so at once.
    """

    def __init__(self, *, background: bool) -> None:
        self._compiling = Compiling(background)
        self._waiting: dict[Request, tuple[Lane, Future[None] | None]] = {}

    @property
    def busy(self) -> bool:
        return bool(self._waiting)

    def queue(self, lane: Lane, request: Request) -> None:
        """Queue a request in its lane; one with a new grammar waits here until that is compiled."""
        structured = request.sampling.structured
        if structured is None:
            lane.queue_of(request).append(request)
            return
        assert lane.grammars is not None
        if lane.grammars.ready(structured.spec):
            lane.queue_of(request).append(request)
        else:
            # A full cache is emptied first, once nothing compiles; until then the future is None.
            start = self._compiling.start
            self._waiting[request] = (
                lane,
                None if lane.grammars.full else start(lane.grammars, structured.spec),
            )

    def turn(self, lanes: Collection[Lane]) -> list[tuple[Request, Failed]]:
        """Queue the requests whose grammars are compiled in their lanes. Waits a moment if no lane
        runs. Returns the requests whose grammars cannot be compiled, each with its failure.
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
            self._empty_full_caches(lanes)
        return failures

    def forget(self, request: Request) -> bool:
        """Drop a request that nobody waits for any more. Returns whether it was here."""
        waited = self._waiting.pop(request, None)
        if waited is not None and waited[1] is not None:
            waited[1].cancel()
        return waited is not None

    def _empty_full_caches(self, lanes: Collection[Lane]) -> None:
        """Empty the caches that are full, and compile what waited for that."""
        for lane in lanes:
            if lane.grammars is not None and lane.grammars.full:
                lane.grammars.clear()
                waiting = [*lane.waiting, *lane.batch_waiting]  # their grammars were just dropped
                for request in [r for r in waiting if r.sampling.structured is not None]:
                    lane.queue_of(request).remove(request)
                    self.queue(lane, request)
        for request, (lane, future) in list(self._waiting.items()):
            if future is None:
                del self._waiting[request]
                self.queue(lane, request)
