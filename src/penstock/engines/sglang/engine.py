"""The SGLang engine. Constructing it checks its options; only the worker imports SGLang."""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

from penstock.engines.base import Stated
from penstock.engines.disk import sources
from penstock.engines.disk.sources import check_adapter
from penstock.engines.sglang import options
from penstock.engines.worker_engine import WorkerEngine
from penstock.errors import EngineStartError, UnsupportedError

_LORA_RANK = 64
"""The largest rank of adapters if a `lora_config` asks for adapters and states no rank."""


class SGLangEngine(WorkerEngine):
    """SGLang through its `Engine`. `engine_kwargs` are its server arguments, by Python names."""

    name: ClassVar[str] = "sglang"
    makes_ranks: ClassVar[bool] = True
    costs_only: ClassVar[frozenset[str]] = options.COSTS_ONLY
    worker: ClassVar[str] = "penstock.engines.sglang.worker"
    operations: ClassVar[frozenset[str]] = WorkerEngine.operations | {
        *("sleep", "wakeup", "is_sleeping", "pause", "resume", "is_paused"),
        *("start_profile", "stop_profile", "collective_rpc"),
    }

    def __init__(self, model_source: str, **kwargs: Any) -> None:
        super().__init__(model_source, **kwargs)
        self.options = options.check_options(self.engine_kwargs, model_source)
        self.tool_call_parser = self.options.get("tool_call_parser")
        self.reasoning_parser = self.options.get("reasoning_parser")
        self.deterministic = bool(self.options.get("enable_deterministic_inference"))
        for name, path in self.adapters.items():
            check_adapter(name, path, self.options.get("max_lora_rank"))
        self._asleep = False
        self._paused = False

    @classmethod
    def deterministic_options(cls) -> dict[str, Any]:
        return {"enable_deterministic_inference": True}

    @classmethod
    def adapter_options(cls, most: int) -> dict[str, Any]:
        return {
            "enable_lora": True,
            "max_loras_per_batch": most,
            "max_lora_rank": _LORA_RANK,
            "lora_target_modules": ["all"],
        }

    def stated_context_length(self) -> int | None:
        given = self.options.get("context_length")
        return given if isinstance(given, int) else sources.stated_context_length(self.model_source)

    def stated(self) -> Stated:
        return Stated(sources.stated_vocabulary(self.model_source))

    def describe(self) -> None:
        sources.describe(self.model_source)

    # Life
    async def _load_message(self) -> options.Load:
        options.check_version()
        self._asleep = self._paused = False
        return options.Load(
            await asyncio.to_thread(sources.model_for, self.model_source),
            {name: value for name, value in self.options.items() if name not in options.PARSERS},
        )

    async def start(self) -> None:
        try:
            await super().start()
        except EngineStartError as error:
            if note := options.version_note():
                raise EngineStartError(f"{error}{note}") from None
            raise

    # Adapters
    async def resolve_lora(self, name: str, path: str) -> None:
        check_adapter(name, path, self.options.get("max_lora_rank"))
        if self._process is not None and not self.capabilities.adapters:
            raise self._unsupported(
                "LoRA adapters unless it is started with engine_kwargs.enable_lora"
            )
        await super().resolve_lora(name, path)

    # Control
    async def control(self, operation: str, **options: Any) -> Any:
        match operation:
            case "sleep":
                await self._sleep()
            case "wakeup":
                if self._asleep:
                    await self._call(operation)
                self._asleep = False
            case "is_sleeping":
                return self._asleep
            case "pause":
                await self._call(operation, options["mode"])
                self._paused = True
            case "resume":
                await self._call(operation)
                self._paused = False
            case "is_paused":
                return self._paused
            case "start_profile" | "stop_profile":
                await self._call(operation)
            case "collective_rpc":
                if options["args"]:
                    raise UnsupportedError(
                        f"the {self.name} engine passes arguments by name only: use kwargs",
                        param="args",
                    )
                # SGLang reports success without a result: this returns None.
                return await self._call(operation, options["method"], dict(options["kwargs"]))
            case _:
                return await super().control(operation, **options)

    async def _sleep(self) -> None:
        """Free the KV cache, and the weights where SGLang keeps a copy of them."""
        if not self.options.get("enable_memory_saver"):
            raise self._unsupported(
                "sleep unless it is started with engine_kwargs.enable_memory_saver"
            )
        # Without a copy SGLang wakes with weights that nobody has loaded.
        copied = bool(self.options.get("enable_weights_cpu_backup"))
        await self._call("sleep", ["kv_cache", "weights"] if copied else ["kv_cache"])
        self._asleep = True
