"""Users' own engines in Ray's form, behind ours (`engine_cls` of `LLMServer`)."""

from __future__ import annotations

import inspect
from contextlib import aclosing
from types import SimpleNamespace
from typing import Any, ClassVar

from penstock.engines.base import Capabilities, LLMEngine
from penstock.engines.tasks import Batches, task_of
from penstock.errors import ConfigError, EngineDeadError, PenstockError
from penstock.llm_config import LLMConfig
from penstock.serve.compat.forms import (
    METHOD_OF,
    METHODS,
    asked,
    batches_of,
    result_of,
)
from penstock.serve.models.callbacks import takes
from penstock.types import ChatRequest, CompletionRequest

MOST_AT_ONCE = 256
"""Requests that an engine of Ray's form gets at once, unless `max_num_seqs` says it."""
_OPERATIONS = (
    *("sleep", "wakeup", "is_sleeping", "pause", "resume", "is_paused"),
    *("reset_prefix_cache", "start_profile", "stop_profile", "collective_rpc"),
)


class FormEngine(LLMEngine):
    """Runs `cls(llm_config)`: `start`, `chat(request, raw_request_info)` and so on, as Ray's
    `LLMEngine` has them. It takes the requests of those methods that the class has.
    """

    name: ClassVar[str] = "custom"
    in_rays_form = True

    def __init__(self, config: LLMConfig, cls: Any) -> None:
        super().__init__(config.model_source, engine_kwargs=config.engine_kwargs)
        missing = [name for name in ("start", "chat") if not hasattr(cls, name)]
        if missing:
            raise ConfigError(
                f"must be an engine: it has no {' and no '.join(missing)}",
                field="engine_cls",
                value=cls,
            )
        self._config = config
        self._cls = cls
        self._shown = f"the engine {getattr(cls, '__name__', cls)}"
        self.inner: Any = None
        self._asleep = False

    # Life
    async def start(self) -> None:
        if self.inner is not None and await self._is_well():
            return  # it slept
        await self.stop()
        self.inner = inner = self._cls(self._config)
        await _awaited(inner.start())
        options = self._config.engine_kwargs
        tasks = {task for task in METHODS if hasattr(inner, task)}
        if "score" in tasks:
            tasks.add("rerank")
        length, slots = options.get("max_model_len"), options.get("max_num_seqs")
        self.capabilities = Capabilities(
            tasks=frozenset(tasks),
            context_length=length if isinstance(length, int) else 0,
            max_concurrency=slots if isinstance(slots, int) else MOST_AT_ONCE,
            structured=frozenset({"json_schema", "json_object", "regex", "grammar"}),
            max_top_logprobs=20,
            adapters=hasattr(inner, "resolve_lora"),
            token_ids=False,
        )

    async def stop(self) -> None:
        inner, self.inner, self._asleep = self.inner, None, False
        if inner is not None and hasattr(inner, "shutdown"):
            await _awaited(inner.shutdown())

    async def check_health(self) -> None:
        if self.inner is None:
            raise EngineDeadError(f"{self._shown} does not run")
        if not hasattr(self.inner, "check_health"):
            return
        try:
            await _awaited(self.inner.check_health())
        except PenstockError:
            raise
        except Exception as error:
            raise EngineDeadError(f"{self._shown} is ill: {error}") from error

    async def _is_well(self) -> bool:
        try:
            await self.check_health()
        except PenstockError:
            return False
        return True

    # Requests
    async def generate(self, request: ChatRequest | CompletionRequest) -> Batches:
        task = task_of(request)
        answer = self._ask(task, request)
        async with aclosing(batches_of(answer, request, self._shown)) as batches:
            async for batch in batches:
                yield batch

    async def answer(self, task: str, request: Any) -> Any:
        if task == "rerank":
            task = "score"
        return await result_of(task, request, self._ask(task, request), self._shown)

    def _ask(self, task: str, request: Any) -> Any:
        if not hasattr(self.inner, METHOD_OF.get(task, task)):
            raise self._unsupported(task)
        return asked(self.inner, task, request, self._config.model_id)

    # What operators ask
    def brings(self, operation: str) -> bool:
        return operation in _OPERATIONS and hasattr(self.inner or self._cls, operation)

    async def control(self, operation: str, **options: Any) -> Any:
        method = getattr(self.inner, operation, None)
        if method is None and operation == "is_sleeping":
            return self._asleep
        if method is None:
            return await super().control(operation, **options)
        clears = operation == "pause" and self.brings("reset_prefix_cache")
        if clears and takes(method, "clear_cache"):
            options["clear_cache"] = False  # who asks for that has the cache reset as well
        result = await _awaited(method(**options))
        if operation in ("sleep", "wakeup"):
            self._asleep = operation == "sleep"
        return result

    async def resolve_lora(self, name: str, path: str) -> None:
        if not hasattr(self.inner, "resolve_lora"):
            raise self._unsupported("LoRA adapters")
        self.adapters[name] = path
        model_id = f"{self._config.model_id}:{name}"
        await _awaited(
            self.inner.resolve_lora(
                SimpleNamespace(
                    model_id=model_id,
                    local_path=path,
                    max_total_tokens=None,
                    lora_assigned_int_id=len(self.adapters),
                )
            )
        )

    async def remove_lora(self, name: str) -> None:
        self.adapters.pop(name, None)


async def _awaited(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value
