"""The supervisor of an engine: one for all its users, servers and jobs alike.

It starts the engine and revives it after a death. It knows who uses the engine and which requests
are suspects, and it makes each adapter ready once.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from penstock.engines.base import LLMEngine
from penstock.engines.disk.sources import adapter_path, local_adapter
from penstock.engines.quarantine import Quarantine, Visit
from penstock.engines.tasks import generated
from penstock.errors import (
    ConfigError,
    EngineDeadError,
    EngineStartError,
    EngineTimeoutError,
    PenstockError,
    UnavailableError,
    UnsupportedError,
)
from penstock.openai.responses import Answers
from penstock.types import (
    ChatRequest,
    ClassifyRequest,
    CompletionRequest,
    EmbeddingRequest,
    RerankRequest,
    Sampling,
)

Phase = Literal["cold", "loading", "ready", "asleep", "failed"]


async def _nothing() -> None:
    pass


@dataclass(frozen=True)
class Policy:
    """How an engine is started and restarted. The defaults are those of batch work; a server has
    its own.

    `restart_delays_s` are the waits before the restarts of an engine that dies again without an
    answer in between; when they are used up, the engine has failed. After more than `probe_after`
    such deaths a new engine is probed before it is used. With `start_retries`, a restart that fails
    counts as a death; without, it ends the restarts. `retry_delays_s` are the waits before a failed
    engine may be loaded again, after the first failure, the second, and so on.

    `make_room` is awaited before the engine takes memory; `free_room` is called when the memory is
    free again. `before_start` is awaited before the engine starts, and `on_ready` when it has
    started, before it is used. `restore` is awaited last, after a probe: it may pause the engine,
    and a paused engine answers no probe.
    `on_change` is called when the phase becomes "loading", "ready" or "failed"; when it becomes
    "cold" because the change was cancelled; when `load` finds the engine ready; and when the last
    user of an engine that `stays` has left.
    """

    restart_delays_s: Sequence[float] = (0.0, 0.0, 0.0)
    probe_after: int = 3
    start_retries: bool = False
    retry_delays_s: Sequence[float] = (0.0,)
    start_timeout_s: float | None = None
    make_room: Callable[[], Awaitable[None]] = _nothing
    free_room: Callable[[], None] = lambda: None
    before_start: Callable[[], Awaitable[None]] = _nothing
    on_ready: Callable[[], Awaitable[None]] = _nothing
    restore: Callable[[], Awaitable[None]] = _nothing
    on_change: Callable[[], None] = lambda: None


BATCH = Policy()


class Supervisor:
    """Holds one engine, and changes its phase, one change at a time.

    An engine has users (`running`) and perhaps an owner, who calls `load` and `unload`. An engine
    that is started for its users ends with the last of them, unless it `stays` for its owner. An
    engine that was already running is left running, unless it is loaded and unloaded.
    """

    def __init__(self, engine: LLMEngine, policy: Policy = BATCH) -> None:
        self.engine = engine
        self.policy = policy
        self.phase: Phase = "cold"
        self.error: Exception | None = None
        """Why the engine has failed."""
        self.generation = 0
        """How often the engine became ready: it was started, was woken, or was found running."""
        self.restarts = 0
        """How many of its starts followed a death."""
        self.deaths = 0
        """Deaths in a row without an answer in between."""
        self.stays = False
        self.quarantine = Quarantine(self)
        self._users = 0
        self._owned = False  # started here
        self._sleep_again: Callable[[], Awaitable[None]] = _nothing
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._changing = asyncio.Lock()
        self._failures = 0
        self._retry_at = 0.0
        self._adapters: dict[tuple[str, str | None], asyncio.Future[None]] = {}
        self._adapting = asyncio.Lock()

    # Users
    @property
    def in_use(self) -> bool:
        """Whether a job or a processor uses the engine now."""
        return self._users > 0

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncGenerator[LLMEngine, None]:
        """The engine, started unless it runs, while the context lasts.

        Raises what keeps it from starting, and `ConfigError` if it runs in another event loop.
        """
        self._check_loop()
        self._users += 1
        try:
            async with self._changing:  # an engine that is being stopped is started again
                if self.phase != "loading":
                    await self._run()
            await self._settled()
            if self.phase != "ready":
                raise self.error or self.failure()
            yield self.engine
        finally:
            self._users -= 1
            if not self._users:
                await self._end()

    async def _run(self) -> None:
        try:
            await self.engine.check_health()
        except EngineDeadError:
            if self.phase == "ready":
                self.revive(self.generation)
            else:
                self._owned = True
                self._begin(self._load())
        else:
            if self.phase != "ready":
                self._begin(self._load(found=True))

    async def _end(self) -> None:
        """The last user has left. A user who comes during the stop waits, then starts it again."""
        if self.stays:
            with contextlib.suppress(PenstockError):  # no matter for the job, which has its answers
                await self._sleep_again()
            self.policy.on_change()
        elif self._owned:
            await self._stop()
        self._detach()

    def _detach(self) -> None:
        """Let go of the engine, unless a server has it: the next job begins without suspects."""
        if (
            not self._users
            and (not self.stays or self.policy is BATCH)
            and self.engine.supervisor is self
        ):
            self.engine.supervisor = None

    def _check_loop(self) -> None:
        here = asyncio.get_running_loop()
        if not self._users and self.phase in ("cold", "failed"):
            self._loop = here
        if self._loop is not here or self.engine.loop not in (None, here):
            raise ConfigError(
                "the engine runs in another event loop, and can only be used there", field="engine"
            )

    # Its owner
    def load(self) -> None:
        """Begin to load or wake the engine, unless it is loaded or loading. `ready` waits for it.

        The engine stays until `unload`. Raises `UnavailableError` while another supervisor has it
        loaded, such as that of a job which began first.
        """
        holder = self.engine.supervisor
        if (
            holder is not None
            and holder is not self
            and (holder.in_use or holder.phase not in ("cold", "failed"))
        ):
            raise UnavailableError(
                f"a job or another server holds the engine of '{self.engine.model_source}': start"
                " this server before the job, or when they have ended"
            )
        self.stays = True
        self._sleep_again = _nothing
        self.engine.supervisor = self
        self.engine.on_death = self._died
        if self.phase == "ready":  # perhaps without its owner, for a job
            self.policy.on_change()
        elif self.phase != "loading":
            self._owned = True
            self._begin(self._load())

    async def unload(self) -> None:
        """Stop the engine and free its memory, now or with its last user."""
        self.stays = False
        if not self._users:
            await self._stop()
            self._detach()

    async def sleep(self, level: int, wanted: Callable[[], bool] = lambda: True) -> None:
        """Let the engine sleep until `load`: at once, or when its last user has left. It does not
        if `wanted` is no longer true when no other change is under way. The memory is given back,
        except at level 0. An engine that cannot sleep is stopped.
        """
        self._sleep_again = partial(self.sleep, level, wanted)
        async with self._changing:
            if self.phase != "ready" or self._users or not wanted():
                return
            self.phase = "asleep"  # now: a call that wakes it meanwhile must see this, and wait
            frees = level > 0
            try:
                try:
                    await self.engine.sleep(level)
                except UnsupportedError:
                    await self.engine.stop()
                    frees = True
            except BaseException:
                if self.phase == "asleep":
                    self.phase = "ready"
                raise
            if frees:
                self.policy.free_room()

    # Phases
    async def ready(self) -> None:
        """Wait until the engine is ready. Raises what keeps it from that."""
        await self._settled()
        if self.phase != "ready":
            raise self.failure()

    def failure(self) -> PenstockError:
        """A new error that tells why the engine cannot be used."""
        if self.phase != "failed":
            return EngineDeadError(f"'{self.engine.model_source}' is not loaded")
        kind = (
            EngineTimeoutError if isinstance(self.error, EngineTimeoutError) else EngineStartError
        )
        error = kind(self.reason)
        error.retry_after = max(self._retry_at - asyncio.get_running_loop().time(), 0.0)
        return error

    @property
    def reason(self) -> str:
        """Why the engine has failed, in words; empty if it has not."""
        if self.phase != "failed":
            return ""
        known = isinstance(self.error, PenstockError)
        why = str(self.error) if known else f"{type(self.error).__name__}: {self.error}"
        return f"the {self.engine.name} engine cannot serve '{self.engine.model_source}': {why}"

    @property
    def may_retry(self) -> bool:
        """Whether a failed engine has waited long enough to be loaded again."""
        return asyncio.get_running_loop().time() >= self._retry_at

    async def _settled(self) -> None:
        while self.phase == "loading" and self._task is not None:
            task = self._task
            await asyncio.wait([task])
            if task is self._task and self.phase == "loading":  # the loading was cancelled
                self._enter_phase("cold")

    def _begin(self, change: Coroutine[Any, Any, None]) -> None:
        self.phase, self.error = "loading", None
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.create_task(change)
        self.policy.on_change()

    async def _load(self, *, found: bool = False) -> None:
        """Start the engine, unless it was `found` running."""
        async with self._changing:
            self.deaths = 0
            self._owned |= not found
            try:
                await self._start(_nothing if found else self.engine.start)
            except Exception as error:
                await self._fail(error)

    async def _start(self, start: Callable[[], Awaitable[None]], *, proved: bool = False) -> None:
        policy, waits_for = self.policy, "memory"
        self._adapters.clear()
        try:
            async with asyncio.timeout(policy.start_timeout_s) as limit:
                await policy.make_room()
                waits_for = "the engine"
                await policy.before_start()
                await start()
                if await self.engine.is_sleeping():
                    await self.engine.wakeup()
                await policy.on_ready()
                if proved:
                    await self._prove()
                await policy.restore()
        except TimeoutError:
            if not limit.expired():
                raise
            raise EngineTimeoutError(
                f"waited {policy.start_timeout_s:g} s for {waits_for}"
            ) from None
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # A hook or a call of the engine raised it: this task itself was not cancelled.
            raise EngineStartError("its start was cancelled from within") from error
        self.generation += 1
        self._failures = 0
        self._enter_phase("ready")

    async def _fail(self, error: Exception) -> None:
        with contextlib.suppress(Exception):  # the first error is the one to report
            await self.engine.stop()
        self.policy.free_room()
        delays, now = self.policy.retry_delays_s, asyncio.get_running_loop().time()
        self._retry_at = now + delays[min(self._failures, len(delays) - 1)]
        self._failures += 1
        self._owned = False
        self.error = error
        self._enter_phase("failed")

    def _enter_phase(self, phase: Phase) -> None:
        self.phase = phase
        self.quarantine.reopen()
        self.policy.on_change()

    async def _stop(self) -> None:
        task, self.phase = self._task, "cold"
        if task is not None and not task.done():
            task.cancel()
            await asyncio.wait([task])
        async with self._changing:
            if self._users or self.stays:  # a user or an owner has come meanwhile, and loads it
                return
            self._owned = False
            try:
                await self.engine.stop()
            finally:
                self.policy.free_room()
        self.quarantine.reopen()

    # Deaths
    def _died(self) -> None:
        """The engine says that it has died. There may be no request in it that would notice."""
        if self.stays:
            self.revive(self.generation)

    async def revived(self, visit: Visit) -> bool:
        """Wait, after the engine died under a request. Returns whether a new one runs and may be
        asked again.
        """
        wanted = visit.again()
        if not wanted and not self.stays:
            self.quarantine.reopen()  # so that requests which wait there end too
            return False
        if not self.revive(visit.generation) or visit.begun or not wanted:
            return False
        await self.ready()
        return True

    def revive(self, generation: int) -> bool:
        """Begin to start a dead engine again, unless that was done since `generation`. Returns
        whether there is, or will be, a new engine.
        """
        if self.phase == "ready" and generation == self.generation:
            self._begin(self._revive())
        elif self.phase != "loading":
            self.quarantine.reopen()
        return self.phase in ("ready", "loading")

    async def _revive(self) -> None:
        policy = self.policy
        most = len(policy.restart_delays_s)
        async with self._changing:
            self.deaths += 1
            while True:
                await asyncio.sleep(policy.restart_delays_s[min(self.deaths, most) - 1])
                try:
                    await self._start(self.engine.restart, proved=True)
                except Exception as error:
                    self.deaths += 1
                    retried = policy.start_retries or isinstance(error, EngineDeadError)
                    if not retried or self.deaths > most:
                        return await self._fail(error)
                else:
                    self.restarts += 1
                    return

    async def _prove(self) -> None:
        """Probe an engine that dies again and again. Raises if the probe alone kills it."""
        if self.deaths <= self.policy.probe_after and not self.quarantine.wants_probe:
            return
        try:
            await _probe(self.engine)
        except EngineDeadError:
            self.quarantine.absolve()
            raise
        self.quarantine.answered()
        self.deaths = 0

    # Adapters
    async def adapter(self, name: str, where: str | None = None) -> None:
        """Make an adapter usable, once for all rows that name it. `where` is its directory or URL,
        if known.

        Raises `ModelNotFoundError`, and `RequestError` if the engine has another adapter of that
        name.
        """
        ready = self._adapters.get((name, where))
        if ready is None:
            ready = asyncio.ensure_future(self._load_adapter(name, where))
            self._adapters[name, where] = ready
        await asyncio.shield(ready)

    async def _load_adapter(self, name: str, given: str | None) -> None:
        where = given
        try:
            if where is not None and "://" in where:
                where = await asyncio.to_thread(local_adapter, name, where)
            async with self._adapting:  # so that a second load of the same name finds the first
                path = adapter_path(self.engine, name, where)
                if path is not None:
                    await self.engine.resolve_lora(name, path)
        except Exception:
            self._adapters.pop((name, given), None)  # so that the next row tries again
            raise


def supervisor_of(engine: LLMEngine) -> Supervisor:
    """The supervisor that holds the engine, else a new one for batch work."""
    if engine.supervisor is None:
        engine.supervisor = Supervisor(engine)
    return engine.supervisor


async def _probe(engine: LLMEngine) -> None:
    """Send the engine a minimal request. Returns if the engine answers it, or refuses it.

    Raises `EngineDeadError` if the engine dies.
    """
    sampling = Sampling(max_tokens=1, temperature=0.0)
    requests = {
        "completions": CompletionRequest("Hi", sampling, stream=False),
        "chat": ChatRequest([{"role": "user", "content": "Hi"}], sampling, stream=False),
        "embeddings": EmbeddingRequest(["Hi"]),
        "rerank": RerankRequest("Hi", ["Hi"]),
        "classify": ClassifyRequest(["Hi"]),
    }
    task = next((task for task in requests if task in engine.capabilities.tasks), None)
    try:
        match request := requests.get(task or ""):
            case ChatRequest() | CompletionRequest():
                await Answers.of(generated(engine, request))
            case None:
                await engine.check_health()
            case _:
                await getattr(engine, str(task))(request)
    except EngineDeadError:
        raise
    except PenstockError:
        pass  # the engine lives, and refuses the probe
