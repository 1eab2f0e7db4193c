"""Prompts are computed by one engine, tokens by another: neither waits for the other kind of work,
and each side has as many replicas as it needs. The KV caches move between them.

A prompt is tokenized once, on the decode side; both engines are given its token ids. What cannot be
had from the prefill side, for whatever reason, is computed on the decode side, and no client sees
it. Each request is counted under one outcome:

    remote        the prefill side computed the prompt
    local         it was not asked: a short prompt, one with pictures, a request for several answers
    unavailable   it is loading, asleep or gone
    failed        it broke in the middle, or its cache did not arrive
    slow          it took longer than `prefill_timeout_s`
    mismatch      what it handed over is of no use: another version or adapter, no address
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from contextlib import aclosing
from typing import Any, ClassVar, Literal

import msgspec

from penstock.balance.breaker import CircuitBreaker
from penstock.engines.tasks import Batches, generated, mapped
from penstock.errors import (
    ConfigError,
    EngineError,
    OverloadedError,
    PenstockError,
    UnavailableError,
)
from penstock.kv.base import Identity, Role, make_connector, mismatch
from penstock.llm_config import LLMConfig
from penstock.serve.models.handle import ModelHandle, ModelState
from penstock.serve.models.local import LocalModel
from penstock.serve.models.server import LLMServer, Request
from penstock.types import CompletionRequest, Delta, Sampling

TRIP_AFTER, COOLDOWN_S = 3, 1.0
"""Failures in a row after which the prefill side is left alone, and for how long at first."""
SENDER = "penstock_sender"
"""The key in a hand-over's `kv_transfer_params` that holds the engine's identity."""

_log = logging.getLogger(__name__)


class PrefillServer(LLMServer):
    """Answers with one token at most, and with where the prompt's cache is.

    Nobody waits for it, as the decode side can compute the prompt itself. So it refuses requests
    while its engine loads, and does not repeat them after the engine's death.
    """

    role: ClassVar[Role] = "prefill"

    def generate(self, request: Request) -> Batches:
        return super().generate(_clamped(request))

    def _asks_again(self) -> bool:
        return False

    def _check_open(self, task: str, request: Any) -> None:
        super()._check_open(task, request)
        if self.supervisor.phase != "ready":
            raise UnavailableError(
                f"the prefill side of '{self.llm_config.model_id}' is {self.supervisor.phase}", 1.0
            )

    def _batches(self, request: Request) -> Batches:
        identity = self.engine.identity
        if identity is None:
            return super()._batches(request)
        sender = msgspec.to_builtins(
            msgspec.structs.replace(identity, adapter=request.adapter or "")
        )

        def signed(delta: Delta) -> Delta:
            if delta.finish_reason is None:
                return delta
            params = {**(delta.kv_transfer_params or {}), SENDER: sender}
            return msgspec.structs.replace(delta, kv_transfer_params=params)

        return mapped(super()._batches(request), signed)


def _clamped(request: Request) -> Request:
    """The request for one token, the least there is. No client sees that token."""
    request = msgspec.structs.replace(
        request, sampling=Sampling(max_tokens=1, temperature=0.0), n=1, stream=False
    )
    return (
        msgspec.structs.replace(request, echo=False)
        if isinstance(request, CompletionRequest)
        else request
    )


class DecodeServer(LLMServer):
    """`prefill` is a model in this process, unless a runtime sets another handle before `start`."""

    role: ClassVar[Role] = "decode"

    def __init__(self, llm_config: LLMConfig, **kwargs: Any) -> None:
        super().__init__(llm_config, **kwargs)
        if llm_config.prefill_config is None:
            raise ConfigError("the decode side needs a prefill side", field="prefill_config")
        if self.engine.connector is None:
            raise ConfigError(
                f"the {self.engine.name} engine needs a connector to exchange KV caches",
                field="engine_kwargs.kv_transfer_config",
            )
        self._prefill_config = llm_config.prefill_config
        self._prefill: ModelHandle | None = None
        self._breaker = CircuitBreaker(TRIP_AFTER, COOLDOWN_S, time.monotonic)
        self._waking: asyncio.Task[None] | None = None
        self._logged: set[str] = set()
        self.handoffs: Counter[str] = Counter()

    @property
    def prefill(self) -> ModelHandle:
        if self._prefill is None:
            self._prefill = LocalModel(self._prefill_config)
        return self._prefill

    @prefill.setter
    def prefill(self, handle: ModelHandle) -> None:
        self._prefill = handle

    # Life
    async def start(self) -> None:
        """Load both sides. Raises what keeps either from it."""
        await asyncio.gather(super().start(), self.prefill.start())

    async def stop(self, drain_timeout_s: float = 0.0) -> None:
        """As `LLMServer.stop`; the prefill side goes last."""
        await super().stop(drain_timeout_s)
        if self._waking is not None:
            self._waking.cancel()
        if self._prefill is not None:
            await self._prefill.stop(0.0)

    async def unload(self) -> None:
        await super().unload()
        if isinstance(self._prefill, LocalModel):
            await self._prefill.unload()

    async def sleep(self, level: int = 1, mode: Literal["wait", "abort"] = "wait") -> None:
        """Put both sides to sleep."""
        await super().sleep(level, mode)
        await self._control_prefill("sleep", {"level": level, "mode": mode})

    async def wakeup(self) -> None:
        if self.asleep:
            await self._control_prefill("wakeup", {})
        await super().wakeup()

    async def reset_prefix_cache(self) -> None:
        """Forget every cached prefix on both sides."""
        await super().reset_prefix_cache()
        await self._control_prefill("reset_prefix_cache", {})

    async def _control_prefill(self, method: str, options: dict[str, Any]) -> None:
        """Raise `EngineError` where a replica of the prefill side did not do it: whoever asks knows
        of one model only, and hears of no other.
        """
        for result in await self.prefill.control(method, options):
            if not result["ok"]:
                raise EngineError(
                    f"prefill replica '{result['replica']}': {result['error']['message']}"
                )

    def state(self) -> ModelState:
        """What the server is doing now."""
        return msgspec.structs.replace(super().state(), handoffs=dict(self.handoffs))

    async def engine_metrics(self) -> dict[str, float]:
        """What both engines count, if they run in this process."""
        theirs = await self.prefill.engine_metrics()
        return {
            **await super().engine_metrics(),
            **{f"prefill_{name}": value for name, value in theirs.items()},
        }

    # Requests
    def _batches(self, request: Request) -> Batches:
        if request.kv_transfer_params is not None:  # the caller has seen to the prompt
            return super()._batches(request)
        return self._after_prefill(request)

    async def _after_prefill(self, request: Request) -> Batches:
        outcome, request = await self._handed_over(request)
        while True:
            begun = False
            try:
                async with aclosing(super()._batches(request)) as batches:
                    async for batch in batches:
                        if not begun:
                            begun = True
                            self.handoffs[outcome] += 1
                        yield batch
                return
            except EngineError as error:
                # An engine may fail a request whose cache does not arrive. One that died
                # is another matter.
                if begun or outcome != "remote" or type(error) is not EngineError:
                    raise
                self._say(f"a cache of the prefill side was of no use: {error}")
                outcome, request = (
                    "failed",
                    msgspec.structs.replace(request, kv_transfer_params=None),
                )

    async def _handed_over(self, request: Request) -> tuple[str, Request]:
        """The outcome, and the request with the address of its computed prompt, if there is one."""
        if request.n > 1:  # a cache is handed over once
            return "local", request
        ids = await self.engine.prompt_ids(request)
        if ids is None:
            return "local", request
        request = msgspec.structs.replace(request, prompt_token_ids=ids)
        if len(ids) < self.llm_config.prefill_min_tokens:
            return "local", request
        if not self._reachable():
            return "unavailable", request
        breaker, well = self._breaker, None
        if probing := not breaker.closed:
            breaker.begin_probe()
        try:
            params = await self._ask_prefill(request, ids)
            well = True
        except TimeoutError:
            well = False
            self._say(f"the prefill side took longer than {self.llm_config.prefill_timeout_s:g} s")
            return "slow", request
        except (UnavailableError, OverloadedError):
            return "unavailable", request
        except PenstockError as error:
            well = False
            self._say(f"the prefill side failed: {error}")
            return "failed", request
        finally:
            if probing:
                breaker.probed(well)
            elif well:
                breaker.answered()
            elif well is False:
                breaker.failed(request.request_id)
                if (
                    breaker.suspected
                ):  # another request is as good as a probe, and costs nobody more than this one
                    breaker.trip()
        if wrong := self._wrong(request, params):
            self._say(f"what the prefill side handed over is of no use: {wrong}")
            return "mismatch", request
        return "remote", msgspec.structs.replace(request, kv_transfer_params=params or None)

    def _reachable(self) -> bool:
        """Whether the prefill side is worth asking. One that is absent is woken."""
        state = self.prefill.state().state
        if state == "ready" and (self._breaker.closed or self._breaker.probe_due):
            return True
        if state in ("cold", "failed") and (self._waking is None or self._waking.done()):
            self._waking = asyncio.create_task(self._wake())
        return False

    async def _wake(self) -> None:
        with contextlib.suppress(PenstockError):
            await self.prefill.tokenize("wake")

    async def _ask_prefill(self, request: Request, ids: list[int]) -> dict[str, Any]:
        """Let it compute the prompt; gives what it hands over. A cancel frees its slot."""
        assert self.engine.connector is not None
        asked = CompletionRequest(
            ids,
            Sampling(max_tokens=1, temperature=0.0),
            adapter=request.adapter.rpartition("@")[0] if request.adapter else None,
            stream=False,
            request_id=request.request_id,
            priority=request.priority,
            batch=request.batch,
            kv_transfer_params=self.engine.connector.request_params(),
        )
        params: dict[str, Any] = {}
        async with asyncio.timeout(self.llm_config.prefill_timeout_s):
            async with aclosing(generated(self.prefill, asked)) as batches:
                async for batch in batches:
                    params = batch[-1].kv_transfer_params or {}
        return params

    def _wrong(self, request: Request, params: dict[str, Any]) -> str:
        """Why the hand-over cannot be used. Takes the sender's name out of it."""
        own, connector = self.engine.identity, self.engine.connector
        assert connector is not None
        try:
            sender = msgspec.convert(params.pop(SENDER, None), Identity)
        except msgspec.ValidationError:
            return "it does not say who it comes from"
        if own is None:
            return "this engine has no identity"
        own = msgspec.structs.replace(own, adapter=request.adapter or "")
        return mismatch(own, sender) or connector.misses(params, sender)

    def _say(self, text: str) -> None:
        """Warn, once a text: with a prefill side that is gone every request would say so."""
        if text not in self._logged and len(self._logged) < 100:
            self._logged.add(text)
            _log.warning(
                "'%s': %s; its prompts are computed on the decode side",
                self.llm_config.model_id,
                text,
            )


# Pairs
def paired(prefill: LLMConfig, decode: LLMConfig) -> LLMConfig:
    """The decode side with its prefill side. Raises `ConfigError` if they do not match."""
    for what in ("model_id", "model_source", "engine_name", "deterministic"):
        theirs, ours = getattr(prefill, what), getattr(decode, what)
        if theirs != ours:
            raise ConfigError(
                f"both sides must have the same {what}, not '{theirs}' and '{ours}'", field=what
            )
    if _adapters(prefill) != _adapters(decode):
        raise ConfigError(
            "both sides must find the same adapters", field="lora_config", value=_adapters(prefill)
        )
    names = [
        _connector(config, side) for side, config in (("prefill", prefill), ("decode", decode))
    ]
    if names[0] != names[1]:
        raise ConfigError(
            f"both sides must have the same connector, not {names[0]} and {names[1]}",
            field="engine_kwargs.kv_transfer_config.kv_connector",
        )
    prefill = msgspec.structs.replace(prefill, server_cls=prefill.server_cls or PrefillServer)
    return msgspec.structs.replace(
        decode, server_cls=decode.server_cls or DecodeServer, prefill_config=prefill
    )


def _connector(config: LLMConfig, side: str) -> str:
    given = config.engine_kwargs.get("kv_transfer_config")
    field = f"{side}_config.engine_kwargs.kv_transfer_config"
    if given is None:
        raise ConfigError(
            "is needed to hand KV caches over",
            field=field,
            hint="Such as {kv_connector: NixlConnector}.",
        )
    return make_connector(given, field).name


def _adapters(config: LLMConfig) -> tuple[str | None, dict[str, str]] | None:
    lora = config.lora_config
    return None if lora is None else (lora.dynamic_lora_loading_path, lora.adapters)
