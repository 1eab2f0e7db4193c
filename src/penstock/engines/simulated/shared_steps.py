"""The requests of simulated steps; what the controller of `penstock.engines.sharing` sees of them,
and does with them.

A batch request that leaves a step keeps its tokens, and goes on where it was.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from penstock.engines.sampling import StopStrings
from penstock.engines.sharing import Observed, Shared
from penstock.engines.simulated.answers import text_of_each
from penstock.engines.tasks import Mailbox
from penstock.engines.token_engine import GenerateRequest
from penstock.kv.prefix_index import block_hashes
from penstock.llm_config.batch import BatchConfig
from penstock.types import FinishReason


class Running:
    """One request inside the step loop."""

    def __init__(
        self,
        request: GenerateRequest,
        prompt: list[int],
        answer: bytes,
        reason: FinishReason,
    ) -> None:
        self.request = request
        self.prompt = prompt
        self.prompt_tokens = len(prompt)
        self.blocks = block_hashes(prompt)
        self.answer = answer
        self.texts = text_of_each(answer)
        self.reason = reason
        self.emitted = 0
        self.cached = 0
        self.kv = request.kv_transfer_params or {}
        self.slowness = 1.0
        self.hangs = False
        self.kills = False
        self.ready_at: float | None = None
        """When its first token is due; None until it was admitted."""
        self.stop = StopStrings(request.sampling.stop)
        self.mailbox = Mailbox()


class SharedSteps(Shared):
    """Lets requests of both classes into `slots`."""

    def __init__(self, config: BatchConfig, slots: int) -> None:
        super().__init__(config)
        self.waiting: deque[Running] = deque()
        """Batch requests."""
        self._slots = slots

    def queue_of(self, item: Running, online: deque[Running]) -> deque[Running]:
        """The queue of a request's class."""
        return self.waiting if item.request.batch else online

    def admitted(
        self, now: float, running: dict[Running, None], online: deque[Running]
    ) -> list[Running]:
        """Let requests in, the batch's as far as the controller allows; others of it leave."""
        new: list[Running] = []
        granted = False
        if self._on:
            batch = [item for item in running if item.request.batch]
            seen = Observed(
                len(running) - len(batch), len(online), len(batch), len(self.waiting), self._slots
            )
            rows, _, granted = self.controller.decide(now, seen)
            self.pause = self.controller.lengths(1)
            for item in reversed(batch[rows:]):
                del running[item]
                self.waiting.appendleft(item)
                self.controller.evictions += 1
        while online and len(running) < self._slots - granted:
            new.append(item := online.popleft())
            running[item] = None
        free = self._slots - len(running)
        if self._on:
            free = min(free, rows - sum(item.request.batch for item in running))
        for _ in range(min(free, len(self.waiting))):
            new.append(item := self.waiting.popleft())
            running[item] = None
        return new

    def stepped(self, began: float, ended: float, ready: Sequence[Running]) -> None:
        """These requests got a token."""
        if not self._on:
            return
        classes = [item.request.batch for item in ready]
        batch = sum(classes)
        self.controller.stepped(began, ended, online=len(classes) - batch, batch=batch)
        for item in ready:
            if item.emitted:
                self.controller.answered(id(item), ended)
