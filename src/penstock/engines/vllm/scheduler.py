"""vLLM's scheduler, with batch requests that take part in a step only as far as the controller of
`penstock.engines.sharing` lets them. It runs in the engine core's process.

A request that is not let in stays what it is, running or waiting: vLLM does not see it in that
step. A running one keeps its blocks of the KV cache, unless that is nearly full: then it is
preempted, as vLLM does itself.
"""

from __future__ import annotations

import os
import time
from typing import Any

import msgspec
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler

from penstock.engines.sharing import KV_FULL, Controller, Observed
from penstock.engines.vllm.options import BATCH_CONFIG, BATCH_ID, BATCH_STATS
from penstock.llm_config.batch import BatchConfig

_IDLE_SECONDS = 0.002


class SharingScheduler(Scheduler):  # type: ignore[misc]
    """vLLM's plain scheduler, sharing its steps."""

    running: list[Any]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        given = os.environ.get(BATCH_CONFIG) or "{}"
        self._controller = Controller(msgspec.json.decode(given, type=BatchConfig))
        self._numbers: dict[str, int] = {}
        """Online requests without a first token, by id."""
        self._count = 0
        self._shares = False
        self._began: dict[int, float] = {}
        """When steps began that are under way."""
        self._ended = 0.0

    def add_request(self, request: Any) -> None:
        known = request.request_id in self.requests
        super().add_request(request)
        if is_batch(request):
            self._shares = True
        elif self._shares and not known:
            self._count += 1
            self._numbers[request.request_id] = self._count
            self._controller.arrived(self._count, request.arrival_time)

    def finish_requests(self, request_ids: Any, finished_status: Any) -> Any:
        finished = super().finish_requests(request_ids, finished_status)
        for name in [name for name in self._numbers if name not in self.requests]:
            self._controller.gone(self._numbers.pop(name))
        return finished

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        if not self._shares:
            return super().schedule(*args, **kwargs)
        output = self._shared(*args, **kwargs)
        self._began[id(output)] = time.time()
        return output

    def _shared(self, *args: Any, **kwargs: Any) -> Any:
        running = [one for one in self.running if is_batch(one)]
        waiting = [one for one in self.waiting if is_batch(one)]
        usage = self.kv_cache_manager.usage
        decision = self._controller.decide(
            time.time(),
            Observed(
                len(self.running) - len(running),
                len(self.waiting) - len(waiting),
                len(running),
                len(waiting),
                self.max_num_running_reqs,
                usage,
            ),
        )
        if not decision.rows and len(running) + len(waiting) == len(self.running) + len(
            self.waiting
        ):
            time.sleep(_IDLE_SECONDS)  # vLLM does not wait while it has requests
        held, aside = running[decision.rows :], waiting[max(decision.rows - len(running), 0) :]
        out = {one.request_id for one in held}
        self.running = [one for one in self.running if one.request_id not in out]
        if usage >= KV_FULL and len(self.waiting) > len(waiting):
            for one in reversed(held):
                self._preempt_request(one, time.monotonic())
            aside, held = held + aside, []
        self._controller.evictions += len(held)
        self.waiting.remove_requests(aside)
        try:
            return super().schedule(*args, **kwargs)
        finally:
            self.running += held
            for one in aside:
                self.waiting.add_request(one)

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        result = super().update_from_output(scheduler_output, model_runner_output)
        tokens = scheduler_output.num_scheduled_tokens
        began = self._began.pop(id(scheduler_output), None)
        if began is None or not tokens:
            return result
        now = time.time()
        batch = [count for name, count in tokens.items() if name.startswith(BATCH_ID)]
        online = [count for name, count in tokens.items() if not name.startswith(BATCH_ID)]
        # A step that was scheduled ahead begins with the end of the one before.
        began = max(self._ended, began)
        self._ended = now
        self._controller.stepped(
            began,
            now,
            online=len(online),
            batch=len(batch),
            online_tokens=sum(count for count in online if count > 1),
            batch_tokens=sum(count for count in batch if count > 1),
        )
        for name in [name for name in self._numbers if name in tokens]:
            request = self.requests.get(name)
            if request is None or request.num_output_tokens:
                self._controller.answered(self._numbers.pop(name), now)
        return result

    def make_stats(self, *args: Any, **kwargs: Any) -> Any:
        stats = super().make_stats(*args, **kwargs)
        if stats is not None and self._shares:
            others = stats.kv_connector_stats or {}
            stats.kv_connector_stats = {**others, BATCH_STATS: self._controller.metrics()}
        return stats


class SharingAsyncScheduler(SharingScheduler, AsyncScheduler):  # type: ignore[misc]
    """The same on top of the scheduler that plans a step while another one runs."""


def is_batch(request: Any) -> bool:
    """Whether a request is of the batch class."""
    return str(request.request_id).startswith(BATCH_ID)
