"""The control plane of one server: sleep, pauses, caches, profiles, calls of the engine's workers.

The state that an operator asked for (`asleep`, `paused`) is kept here, apart from the engine, and
applies to every engine that starts later. If an engine cannot pause, the server holds its requests.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct, field

from penstock.config import Seconds, parse_options
from penstock.engines.base import LLMEngine
from penstock.engines.supervisor import Supervisor
from penstock.engines.tasks import Operations, PauseMode
from penstock.errors import (
    ConfigError,
    EngineDeadError,
    EngineTimeoutError,
    PenstockError,
    RequestError,
    UnavailableError,
    UnsupportedError,
    nearest,
)
from penstock.llm_config import LLMConfig
from penstock.serve.models.admission import Admission
from penstock.serve.models.pacing import DeltaStream


class NoOptions(Struct, frozen=True):
    """The options of a method that takes none."""


class SleepOptions(Struct, frozen=True):
    """`level` is vLLM's: 0 keeps all memory, 1 the weights in the CPU's, 2 nothing; other engines
    always free all. "wait" lets requests under way finish, "abort" ends them."""

    level: Annotated[int, Meta(ge=0, le=2)] = 1
    mode: Literal["wait", "abort"] = "wait"


class PauseOptions(Struct, frozen=True):
    """ "wait" lets requests under way finish, "abort" ends them, "keep" holds them. `clear_cache`
    empties the prefix cache then, if the engine has one; not with "keep".
    """

    mode: PauseMode = "wait"
    clear_cache: bool = False


class RpcOptions(Struct, frozen=True):
    """`method` of every worker, with `args` and `kwargs`, within `timeout` seconds."""

    method: str
    args: list[Any] = field(default_factory=list)
    kwargs: dict[str, Any] = field(default_factory=dict)
    timeout: Seconds | None = None


class LoadAdapterOptions(Struct, frozen=True):
    """The name and the directory or URL of an adapter; `load_inplace` replaces one of the name."""

    lora_name: str
    lora_path: str
    load_inplace: bool = False


class UnloadAdapterOptions(Struct, frozen=True):
    """The name of an adapter."""

    lora_name: str


METHODS: dict[str, type[Struct]] = {
    "check_health": NoOptions,
    "sleep": SleepOptions,
    "wakeup": NoOptions,
    "is_sleeping": NoOptions,
    "pause": PauseOptions,
    "resume": NoOptions,
    "is_paused": NoOptions,
    "load_model": NoOptions,
    "unload_model": NoOptions,
    "reset_prefix_cache": NoOptions,
    "start_profile": NoOptions,
    "stop_profile": NoOptions,
    "collective_rpc": RpcOptions,
    "load_lora_adapter": LoadAdapterOptions,
    "unload_lora_adapter": UnloadAdapterOptions,
}
"""The methods that `ModelHandle.control` takes, with their options."""


class ControlPlane(Operations):
    """The operations of a server. Requests for a sleeping model are refused with a 503, those for a
    paused one wait in its queue.
    """

    llm_config: LLMConfig
    engine: LLMEngine
    admission: Admission
    supervisor: Supervisor

    def __init__(self) -> None:
        self.paused: PauseMode | None = None
        self._sleeps: set[object] = set()  # the calls since the last wakeup that have not failed
        self._resuming = asyncio.Lock()
        self.streams: set[DeltaStream] = set()

    @property
    def asleep(self) -> bool:
        """Whether the model was put to sleep, or is being put to sleep."""
        return bool(self._sleeps)

    async def load_lora_adapter(
        self, lora_name: str, lora_path: str, load_inplace: bool = False
    ) -> None:
        """Register an adapter, and load it if the engine runs. Raises `RequestError` for a name
        that is taken, `ModelNotFoundError` if the path has no adapter.
        """
        raise NotImplementedError

    async def unload_lora_adapter(self, lora_name: str) -> None:
        """Forget an adapter. Requests for it that are under way end first."""
        raise NotImplementedError

    async def set_adapters(self, wanted: Mapping[str, str | None]) -> None:
        """Register the adapters that have a path here, and forget those whose path is None."""
        raise NotImplementedError

    async def sleep(self, level: int = 1, mode: Literal["wait", "abort"] = "wait") -> None:
        """Give the memory back until `wakeup`. A model that is not loaded stays unloaded, even if a
        request comes. Raises `RequestError` while a job in this process uses the engine; a job that
        comes later delays the sleep. If the sleep fails or is cancelled, the model stays awake,
        unless another call has put it to sleep.
        """
        if self.supervisor.in_use:
            raise RequestError(
                f"a job uses the engine of '{self.llm_config.model_id}': let it end first"
            )
        mine = object()
        self._sleeps.add(mine)
        self.admission.close()
        self.admission.refuse_waiting(self.asleep_error)
        try:
            if self.paused == "keep":
                # The pause holds the requests, so they will not leave. If the engine does not hold
                # them itself, it must have finished them.
                if not self.has("pause"):
                    await asyncio.gather(*(stream.read_out() for stream in self.streams))
            else:
                if mode == "abort":
                    self._abort()
                await self.admission.drained()
            await self.supervisor.sleep(level, lambda: self.asleep)  # unless woken meanwhile
        except BaseException:
            self._sleeps.discard(mine)
            self.reopen()
            raise

    async def wakeup(self) -> None:
        """Undo `sleep`, and return when the engine is ready. Raises the error that prevents
        that.
        """
        if not self.asleep:
            return
        self._sleeps.clear()
        if self.supervisor.phase == "asleep":
            self.supervisor.load()
            await self.supervisor.ready()
        else:  # the sleep may still be waiting for requests to finish
            self.reopen()

    async def is_sleeping(self) -> bool:
        """Whether the model was put to sleep."""
        return self.asleep

    async def pause(self, mode: PauseMode = "wait", clear_cache: bool = False) -> None:
        """Let new requests wait. Returns when no request is under way any more; with "keep", at
        once. With another mode, requests that an earlier pause holds go on.
        """
        self.paused = mode
        self.admission.close()
        if self.supervisor.phase == "ready" and self.has("pause"):
            # A dead engine runs nothing, and the next one is paused when it starts.
            with contextlib.suppress(EngineDeadError):
                await self.engine.pause(mode)
        elif mode == "abort":
            self._abort()
        elif mode == "keep":
            for stream in self.streams:
                stream.hold()
        if mode != "keep":
            self._release()
            await self.admission.drained()
            if clear_cache and self.has("reset_prefix_cache"):
                await self.reset_prefix_cache()

    async def resume(self) -> None:
        """Undo `pause`. The model stays paused if its engine cannot go on, or if it is paused again
        meanwhile.
        """
        async with self._resuming:  # so that only a pause changes `paused` meanwhile
            mode, self.paused = self.paused, None
            if self.supervisor.phase == "ready" and self.has("pause"):
                try:
                    await self.engine.resume()
                except EngineDeadError:
                    pass  # the next request starts another engine
                except BaseException:
                    if self.paused is None:
                        self.paused = mode
                    raise
            if self.paused is None:
                self._release()
                self.reopen()

    async def is_paused(self) -> bool:
        """Whether the model was paused."""
        return self.paused is not None

    async def unload(self) -> None:
        """Free everything that the model holds, whatever is under way."""
        raise NotImplementedError

    async def load_model(self) -> None:
        """Load the model unless it is loaded, and return when it is ready. Raises the error that
        prevents that.
        """
        if self.asleep:
            raise self.asleep_error()
        self.supervisor.load()
        await self.supervisor.ready()

    async def unload_model(self) -> None:
        """Free everything that the model holds, when the requests under way have ended. The next
        request loads it again, as does one that came meanwhile. Raises `RequestError` while a pause
        holds requests.
        """
        if self.paused == "keep":
            raise RequestError(f"'{self.llm_config.model_id}' holds requests: resume it first")
        self.admission.close()
        try:
            await self.admission.drained()
        except BaseException:
            self.reopen()
            raise
        if self.admission.running:
            return  # the gate was opened meanwhile, by a later call
        await self.unload()
        if self.admission.waiting and not self.asleep:
            self.supervisor.load()

    async def collective_rpc(
        self,
        method: str,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        timeout: float | None = None,  # noqa: ASYNC109  # its name in Ray's and vLLM's API
    ) -> Any:
        """Call a method on every worker of the engine. Raises `EngineTimeoutError` after `timeout`
        seconds.
        """
        try:
            async with asyncio.timeout(timeout):
                return await super().collective_rpc(method, args, kwargs)
        except TimeoutError:
            raise EngineTimeoutError(f"{method} took longer than {timeout:g} s") from None

    async def control(self, operation: str, **options: Any) -> Any:
        """Let the engine do an operation that the server has no part in."""
        if not self.has(operation):
            raise UnsupportedError(f"the {self.engine.name} engine does not support {operation}")
        ready = self.supervisor.phase == "ready"
        if operation == "reset_prefix_cache":
            if not ready:
                return None  # there is no cache
        elif self.asleep:
            raise self.asleep_error()
        elif not ready:
            raise self.supervisor.failure()
        return await getattr(self.engine, operation)(**options)

    async def reapply(self) -> None:
        """Pause a newly started engine if the model is paused."""
        if self.paused is not None and self.has("pause"):
            await self.engine.pause("keep")

    def reopen(self) -> None:
        """Let requests in if the engine is ready, and the model neither asleep nor paused."""
        if self.paused is None and not self.asleep and self.supervisor.phase == "ready":
            self.admission.open()

    def has(self, operation: str) -> bool:
        """Whether the engine does this operation itself."""
        return self.engine.brings(operation)

    def asleep_error(self) -> UnavailableError:
        """The error of a request for a sleeping model."""
        return UnavailableError(f"'{self.llm_config.model_id}' is asleep until it is woken")

    def _abort(self) -> None:
        for stream in list(self.streams):
            stream.abort()

    def _release(self) -> None:
        for stream in self.streams:
            stream.release()


def parse_control(method: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The checked options of a control method. Raises `RequestError`."""
    form = METHODS.get(method)
    if form is None:
        raise RequestError(
            f"unknown control method '{method}'. {nearest(method, METHODS)}", param="method"
        )
    try:
        return msgspec.structs.asdict(parse_options(form, options))
    except ConfigError as error:
        raise RequestError(
            str(error), param=f"options.{error.field}" if error.field else "options"
        ) from None


async def control_result(
    server: ControlPlane, replica: str, method: str, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Call a control method on one replica; a failure is a result. Raises `RequestError` or
    `UnsupportedError`.
    """
    parsed = parse_control(method, options)
    try:
        result = await getattr(server, method)(**parsed)
    except UnsupportedError:
        raise
    except PenstockError as error:
        return control_failure(replica, error.kind, str(error), error.param)
    return {"replica": replica, "ok": True, "result": result}


def undo_of_load(name: str, before: str | None) -> tuple[str, dict[str, Any]]:
    """The control method, with its options, that undoes a `load_lora_adapter` if another replica
    failed to do it. `before` is the path of the earlier adapter of that name, if there was one.
    """
    if before is None:
        return "unload_lora_adapter", {"lora_name": name}
    return "load_lora_adapter", {"lora_name": name, "lora_path": before, "load_inplace": True}


def control_failure(
    replica: str, kind: str, message: str, param: str | None = None
) -> dict[str, Any]:
    """The result of a replica that failed. `param` is the option that is to blame."""
    error = {"type": kind, "message": message}
    if param is not None:
        error["param"] = param
    return {"replica": replica, "ok": False, "error": error}
