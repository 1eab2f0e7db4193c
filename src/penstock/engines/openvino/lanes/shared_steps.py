"""What the controller of `penstock.engines.sharing` sees of the worker's lanes, and does with them.

Before the first batch request nothing here costs a step anything.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from time import monotonic

from penstock.engines.openvino.lanes.lane import Lane
from penstock.engines.openvino.lanes.request import Request
from penstock.engines.sharing import ALL, Decision, Observed, Shared
from penstock.llm_config.batch import BatchConfig


class SharedSteps(Shared):
    """Shares the steps of all lanes. `slots` and `step_tokens` are the limits of each."""

    def __init__(self, config: BatchConfig, slots: int, step_tokens: int) -> None:
        super().__init__(config)
        self._slots = slots
        self._step_tokens = step_tokens
        self._decision = ALL
        self._lanes: Sequence[Lane] = ()
        self._began = 0.0
        self._rows = [0, 0]
        """Rows of this step, of the online class and of the batch class."""
        self._prompts: list[Request] = []
        """The requests whose prompts are computed in this step."""

    def begin(self, lanes: Sequence[Lane]) -> Iterator[tuple[Lane, Request]]:
        """Decide on the next step. Yields the requests that must leave their lanes first."""
        if not self._on:
            return
        batch = sum(lane.batch_active for lane in lanes)
        batch_waiting = sum(len(lane.batch_waiting) for lane in lanes)
        seen = Observed(
            online=sum(len(lane.active) for lane in lanes) - batch,
            online_waiting=sum(len(lane.waiting) for lane in lanes),
            batch=batch,
            batch_waiting=batch_waiting,
            slots=self._slots,
            kv_usage=max(lane.pipeline.get_metrics().cache_usage for lane in lanes) / 100,
        )
        self._began = monotonic()
        self._lanes, self._rows, self._prompts = lanes, [0, 0], []
        self._decision = decision = self.controller.decide(self._began, seen)
        alone = batch_waiting and not (decision.rows or seen.online or seen.online_waiting or batch)
        self.pause = self.controller.lengths(1) if alone else 0.0
        surplus = batch - decision.rows
        for lane in lanes:
            if surplus <= 0:
                break
            for request in lane.surplus(max(lane.batch_active - surplus, 0)):
                surplus -= 1
                self.controller.evictions += 1
                yield lane, request

    def decision_for(self, lane: Lane) -> Decision:
        """What of the decision is this lane's: the rows that the others do not have."""
        if not self._on:
            return ALL
        decision = self._decision
        others = sum(one.batch_active for one in self._lanes if one is not lane)
        return decision._replace(rows=max(decision.rows - others, 0))

    def steps(self, lane: Lane) -> None:
        """The lane makes its step now."""
        if self._on:
            self._rows[0] += len(lane.active) - lane.batch_active
            self._rows[1] += lane.batch_active
            self._prompts += [one for one in lane.active.values() if not one.prefilled]

    def end(self) -> None:
        """All lanes have made their steps."""
        if not self._on or not sum(self._rows):
            return
        ended = monotonic()
        tokens = [0.0, 0.0]
        left = float(self._step_tokens)
        for request in self._prompts:
            part = min(request.new_tokens, left)
            left -= part
            tokens[request.batch] += part
            request.new_tokens -= int(part)
        online, batch = self._rows
        self.controller.stepped(
            self._began,
            ended,
            online=online,
            batch=batch,
            online_tokens=int(tokens[0]),
            batch_tokens=int(tokens[1]),
        )
        for request in self._prompts:
            if request.prefilled and not request.batch:
                self.controller.answered(request.id, ended)
