"""A model with several replicas on this machine, each with an engine process of its own."""

from __future__ import annotations

import asyncio
import copy
import logging
from collections.abc import Collection, Coroutine, Iterator, Mapping
from contextlib import aclosing, contextmanager
from functools import partial
from typing import Any

import msgspec

from penstock.balance.policies.base import RouteRequest
from penstock.balance.policies.table import configured_policy
from penstock.balance.pool import Failover, Member, Pool
from penstock.cores import Cores, parted, usable_cores
from penstock.engines.base import counted_together
from penstock.engines.tasks import Batches, generated
from penstock.errors import (
    EngineDeadError,
    EngineStartError,
    EngineTimeoutError,
    OverloadedError,
    PenstockError,
    UnsupportedError,
)
from penstock.llm_config import LLMConfig
from penstock.serve.config.placement import target_requests
from penstock.serve.models.autoscaling import INTERVAL_S, Autoscaler
from penstock.serve.models.control import parse_control, undo_of_load
from penstock.serve.models.handle import ModelCard, ModelHandle, ModelState, StateName
from penstock.serve.models.local import LocalModel, faced, local_counts
from penstock.serve.models.memory import MemoryBudget, memory_estimate
from penstock.types import ChatRequest, CompletionRequest

HANDED_ON_S = 60.0
"""Seconds after a replica's death in which the requests of a second replica that dies stay with it:
one of them may be a killer, and the quarantine of that replica finds it.
"""
_SHOWN: tuple[StateName, ...] = (
    *("ready", "paused", "loading", "draining", "asleep", "failed", "cold"),
)
"""The state of a model is the first of these that one of its replicas is in."""
_NEAREST = ("ready", "loading", "cold", "asleep", "failed")
"""The phases of an engine; one that may answer sooner comes first."""
_STATEFUL = frozenset(
    {
        *("sleep", "wakeup", "pause", "resume", "load_lora_adapter", "unload_lora_adapter"),
    }
)
"""Operations that also apply to replicas which load later."""
_ELSEWHERE = (EngineStartError, EngineTimeoutError, OverloadedError)
"""Errors after which a request is tried on another replica that is ready."""
_log = logging.getLogger(__name__)


class _ReplicaModel(LocalModel):
    """The model of one replica. Its owner loads and unloads it."""

    def __init__(
        self, config: LLMConfig, budget: MemoryBudget, number: int, cores: Cores, *, stays: bool
    ) -> None:
        super().__init__(config, budget)
        self.replica_id = f"local-{number}"
        self.server.engine.cores = cores
        self._stays = stays
        self._idle_delay_s = None


class _Replica(Member):
    """A replica. `handle` answers its requests: the `model`, or the user's server before it."""

    def __init__(self, model: _ReplicaModel) -> None:
        super().__init__(model.replica_id)
        self.model = model
        self.handle = faced(model.config, model)
        self.died_at = float("-inf")

    @property
    def phase(self) -> str:
        return self.model.server.supervisor.phase

    def is_ready(self, now: float) -> bool:
        return self.phase == "ready" and super().is_ready(now)


class Crew(Pool[_Replica]):
    """The replicas of one model. All are constructed at once, which is cheap; they are loaded as
    the model needs them.

    `members` are the first `wanted` of `replicas`, at least one. The other replicas get no new
    requests, finish those that they have, and unload. A request that finds no replica ready loads
    one. `unloaded`: an operator has unloaded the model, and no request has come since.
    """

    def __init__(self, config: LLMConfig, budget: MemoryBudget) -> None:
        self.fewest, most = local_counts(config)
        initial = config.autoscaling.initial_replicas
        self.wanted = self.fewest if initial is None else initial
        parts = parted(usable_cores(), most)
        self.replicas = [
            _Replica(_ReplicaModel(config, budget, number, part, stays=number < self.fewest))
            for number, part in enumerate(parts)
        ]
        super().__init__(configured_policy(config), self.replicas[: max(self.wanted, 1)])
        for replica in self.replicas:
            replica.model.server.hands_on = partial(self._hands_on, replica)
        self._config = config
        self._budget = budget
        self._autoscaler = Autoscaler(
            config.autoscaling, target_requests(config), self.fewest, most
        )
        self._interval_s = config.autoscaling.metrics_interval_s or INTERVAL_S
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = False
        self._asked_since_look = False
        self.unloaded = False
        self._said_no_memory = False

    # Requests
    @contextmanager
    def busy(self, replica: _Replica) -> Iterator[None]:
        """The replica has one more request while this lasts."""
        replica.running += 1
        self._asked_since_look, self.unloaded = True, False
        if not self.wanted:
            self._scale(1)
        self.watch()
        try:
            yield
        finally:
            replica.running -= 1
            self._release(replica)

    def choose(self, route: RouteRequest, tried: Collection[str] = ()) -> _Replica | None:
        if route.adapter:
            for replica in self.members:
                replica.adapters = replica.model.server.state().adapter_names
        self._some_away = True  # replicas die and wake without notice
        return super().choose(route, tried)

    def ready(self, tried: Collection[str] = ()) -> tuple[_Replica, ...]:
        self._some_away = True
        return super().ready(tried)

    async def obtain(self, failover: Failover[_Replica]) -> _Replica:
        return min(self.members, key=lambda one: (_NEAREST.index(one.phase), one.load))

    def _hands_on(self, dead: _Replica) -> bool:
        """Whether other replicas take over the requests of one whose engine has died."""
        now = dead.died_at = asyncio.get_running_loop().time()
        last = max(one.died_at for one in self.replicas if one is not dead)
        return now - last > HANDED_ON_S and bool(self.ready((dead.id,)))

    # Life
    async def start(self) -> None:
        """Load the replicas that are wanted. Raises the first failure."""
        self._stopping = False
        wanted = self.replicas[: self.wanted]
        ended = await asyncio.gather(
            *(one.model.server.start() for one in wanted), return_exceptions=True
        )
        self.watch()
        for error in ended:
            if error is not None:
                raise error

    async def stop(self, drain_timeout_s: float) -> None:
        self._stopping = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        await asyncio.gather(*(one.handle.stop(drain_timeout_s) for one in self.replicas))
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def keep_unloaded(self, keep: bool) -> None:
        """With `keep`, load nothing before the next request; else load the wanted replicas now."""
        self.unloaded = keep
        self.watch()

    def watch(self) -> None:
        """Compare the replicas with the requests at intervals, until there is nothing to change."""
        if self._timer is None and not self._stopping:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._interval_s, self._look)

    def _look(self) -> None:
        self._timer = None
        requests = sum(one.running for one in self.replicas)
        now = asyncio.get_running_loop().time()
        wanted = self._autoscaler.decide(now, requests, self.wanted, asked=self._asked_since_look)
        self._asked_since_look = False
        if wanted != self.wanted:
            _log.info(
                "model '%s': %d replicas in place of %d, for %d requests",
                *(self._config.model_id, wanted, self.wanted, requests),
            )
            self._scale(wanted)
        self._fill()
        ready = all(one.phase == "ready" for one in self.replicas[: self.wanted])
        if requests or self.wanted > self.fewest or not (ready or self.unloaded):
            self.watch()

    def _scale(self, wanted: int) -> None:
        self.wanted, self._said_no_memory = wanted, False
        self.replace(self.replicas[: max(wanted, 1)])
        for replica in self.replicas:
            self._release(replica)

    def _fill(self) -> None:
        """Load the replicas that are wanted and may be loaded now."""
        if self.unloaded:
            return
        for replica in self.replicas[: self.wanted]:
            supervisor = replica.model.server.supervisor
            if supervisor.phase == "cold" or (
                supervisor.phase == "failed" and supervisor.may_retry
            ):
                self._spawn(self._load(replica))

    async def _load(self, replica: _Replica) -> None:
        """Load a replica. One beyond the fewest is only loaded into free memory."""
        size = await asyncio.to_thread(memory_estimate, self._config)
        server, stays = replica.model.server, replica in self.replicas[: self.fewest]
        unwanted = replica not in self.replicas[: self.wanted] or self._stopping
        if unwanted or self.unloaded or server.asleep or replica.phase not in ("cold", "failed"):
            return
        if stays or self._budget.take(replica.model, size):
            await server.start()
        elif not self._said_no_memory:
            self._said_no_memory = True
            _log.warning(
                "model '%s': there is no memory for the replica %s",
                *(self._config.model_id, replica.id),
            )

    def _release(self, replica: _Replica) -> None:
        """Unload a replica that is neither wanted nor in use."""
        if self._is_left(replica):
            self._spawn(self._unload(replica))

    async def _unload(self, replica: _Replica) -> None:
        if self._is_left(replica):  # still neither wanted nor in use
            await replica.model.unload()

    def _is_left(self, replica: _Replica) -> bool:
        return not (
            replica.running
            or replica in self.replicas[: self.wanted]
            or self._stopping
            or replica.phase not in ("ready", "loading", "asleep")
        )

    def _spawn(self, change: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(change)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, PenstockError):  # the rest is logged
            _log.error("model '%s'", self._config.model_id, exc_info=error)


class _Attempts(Failover[_Replica]):
    """One request's tries on replica after replica, until one has `answered` or `begun` to answer.
    The second replica that dies with the request is the last: the request may be the killer.
    """

    def __init__(self, crew: Crew, route: RouteRequest) -> None:
        super().__init__(crew, route)
        self.answered = self.begun = False
        self._crew = crew
        self._lost = False

    async def next(self) -> _Replica:
        replica = await super().next()
        self._crew.policy.sent(self.route, replica.id)
        return replica

    @contextmanager
    def asking(self, replica: _Replica) -> Iterator[None]:
        """Ask a replica inside. If it ends without `answered`, another replica is to take over."""
        try:
            with self._crew.busy(replica):
                yield
            self.answered = True
        except EngineDeadError:
            if self.begun or self._lost:
                raise
            self._lost = True
        except _ELSEWHERE:
            if self.begun or not self.has_other:
                raise


class ReplicatedModel(ModelHandle):
    """One model with replicas: as many as its requests need, within its configuration's bounds.

    The cores of this machine are divided by the largest number of replicas. A replica beyond the
    fewest is only loaded into free memory. The model belongs to one event loop.

    A request goes to the replica that the policy chooses. Another replica takes it over if that one
    is full, cannot be loaded, or died before a part of the answer was there. Raises `ConfigError`.
    """

    def __init__(self, config: LLMConfig, budget: MemoryBudget | None = None) -> None:
        self.model_id = config.model_id
        self.config = config
        self.crew = Crew(config, budget or MemoryBudget())
        self._session = ""

    # What it is
    @property
    def _first(self) -> LocalModel:
        """The first replica that has been loaded, else the first of all."""
        models = [replica.model for replica in self.crew.replicas]
        return next(
            (one for one in models if hasattr(one.server.engine, "capabilities")), models[0]
        )

    @property
    def engine_name(self) -> str:
        return self._first.engine_name

    @property
    def aliases(self) -> tuple[str, ...]:
        return self._first.aliases

    @property
    def most_replicas(self) -> int:
        return len(self.crew.replicas)

    async def check_before_load(self, task: str, *requests: Any) -> None:
        if not any(replica.model.state().state == "ready" for replica in self.crew.replicas):
            await self._first.check_before_load(task, *requests)

    def card(self) -> ModelCard:
        return self._first.card()

    def state(self) -> ModelState:
        each = {one.id: one.model.server.state() for one in self.crew.replicas}
        shown = [each[one.id] for one in self.crew.members]
        best = min(shown, key=lambda state: _SHOWN.index(state.state))
        states = list(each.values())
        sums = {
            name: sum(getattr(state, name) for state in states)
            for name in ("running", "waiting", "loads", "restarts", "adapter_loads")
        }
        names = sorted({name for state in states for name in state.adapter_names})
        return msgspec.structs.replace(
            best,
            **sums,
            adapters=len(names),
            adapter_names=tuple(names),
            on_demand=not self.crew.fewest,
            replicas=each,
        )

    def engine_app(self) -> Any:
        raise UnsupportedError(
            f"'{self.model_id}' has several engines: a model with one replica can show its app"
        )

    async def engine_metrics(self) -> dict[str, float]:
        """The metrics of the replicas that run, added up as those of one engine."""
        counts = await asyncio.gather(
            *(one.handle.engine_metrics() for one in self.crew.replicas if one.phase == "ready")
        )
        return counted_together(counts)

    async def adapters(self) -> list[str]:
        return await self.crew.replicas[0].handle.adapters()

    def for_session(self, session: str) -> ModelHandle:
        view = copy.copy(self)  # which shares everything else
        view._session = session
        return view

    # Life
    async def start(self) -> None:
        await self.crew.start()

    async def stop(self, drain_timeout_s: float = 30.0) -> None:
        await self.crew.stop(drain_timeout_s)

    # Requests
    async def generate(self, request: ChatRequest | CompletionRequest) -> Batches:
        attempts = _Attempts(self.crew, self.crew.route_of(request, self._session))
        while not attempts.answered:
            replica = await attempts.next()
            with attempts.asking(replica):
                async with aclosing(generated(replica.handle, request)) as batches:
                    async for batch in batches:
                        attempts.begun = True
                        yield batch

    async def answer(self, task: str, request: Any) -> Any:
        attempts = _Attempts(self.crew, self.crew.route_of(request, self._session))
        while not attempts.answered:
            replica = await attempts.next()
            with attempts.asking(replica):
                return await getattr(replica.handle, task)(request)

    # Control
    async def control(self, method: str, options: Mapping[str, Any]) -> list[dict[str, Any]]:
        """As `ModelHandle.control`, on every replica that runs, or on the first one if none does.
        An operation that applies to replicas which load later is done on all of them. If one
        replica cannot load an adapter, no replica keeps it.
        """
        parsed = parse_control(method, options)
        replicas = self.crew.replicas
        running = [one for one in replicas if one.phase != "cold"] or replicas[:1]
        asked = replicas if method in _STATEFUL else running
        loads, unloads = method == "load_model", method == "unload_model"
        before = self.crew.unloaded
        adapter = parsed.get("lora_name", "")
        path_before = replicas[0].model.server.store.given.get(adapter)
        if unloads:  # before the unload: nothing may load a replica again
            self.crew.keep_unloaded(True)
        results = await asyncio.gather(
            *(one.handle.control(method, options) for one in asked), return_exceptions=True
        )
        done = all(not isinstance(one, BaseException) and one[0]["ok"] for one in results)
        if (loads and done) or (unloads and not done and not before):
            self.crew.keep_unloaded(False)
        if method == "load_lora_adapter" and not done:
            undo = undo_of_load(adapter, path_before)
            await asyncio.gather(
                *(
                    one.handle.control(*undo)
                    for one, result in zip(asked, results, strict=True)
                    if not isinstance(result, BaseException) and result[0]["ok"]
                )
            )
        shown = []
        for replica, result in zip(asked, results, strict=True):
            if isinstance(result, BaseException):
                raise result
            if replica in running or not result[0]["ok"]:
                shown += result
        return shown
