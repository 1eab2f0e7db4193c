"""A running vLLM: its engine core in child processes, its asynchronous front in this process."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import signal
import tempfile
import uuid
from collections.abc import Mapping
from typing import Any, get_args

from penstock.engines.base import Capabilities
from penstock.engines.vllm.kv_cache import Counts, events_config, with_engine
from penstock.engines.vllm.library import (
    MULTIMODAL_REGISTRY,
    AsyncEngineArgs,
    AsyncLLM,
    CoreDead,
    UsageContext,
    one_line,
)
from penstock.engines.vllm.options import VLLMOptions, version_note
from penstock.engines.vllm.parsers import load_parsers
from penstock.engines.vllm.processes import Guard, processes_start
from penstock.errors import ConfigError, EngineStartError, PenstockError

_TASKS = {
    "generate": ("chat", "completions"),
    "embed": ("embeddings", "score", "rerank"),
    "token_embed": ("embeddings",),
    "classify": ("classify",),
    "score": ("score", "rerank"),
    "transcription": ("transcriptions",),
}
"""The methods that each of vLLM's tasks serves."""

_VECTORS = {"embed": "dense", "token_embed": "multi"}

_EXTRA = frozenset(
    {
        *("skip_special_tokens", "spaces_between_special_tokens", "include_stop_str_in_output"),
        *("truncate_prompt_tokens", "truncation_side", "cache_salt", "documents"),
        *("return_tokens_as_token_ids", "return_token_ids", "logprob_token_ids"),
        *("thinking_token_budget", "repetition_detection", "watermarking"),
        *("mm_processor_kwargs", "media_io_kwargs", "vllm_xargs", "kv_transfer_params"),
    }
)
"""The parameters of `Sampling.extra` that vLLM's engine honours."""

_CPU_STOP_SECONDS = 1.0
"""How long a stop waits before it kills. A CPU worker takes seconds to end, but loses nothing."""

_REAP_SECONDS = 5.0
_SCHEDULERS = "penstock.engines.vllm.scheduler"


class Starting:
    """Starts vLLM. `environment` is for the engine's processes. With `tells_blocks` the engine
    publishes the events of its KV cache. `counts` is its only logger of statistics, unless the
    options ask for vLLM's own.
    """

    def __init__(
        self,
        model: str,
        options: VLLMOptions,
        environment: Mapping[str, str],
        *,
        tells_blocks: bool,
        counts: Counts,
    ) -> None:
        self._model = model
        self._mark = uuid.uuid4().hex
        self._folder = tempfile.mkdtemp(prefix="penstock-vllm-")
        if tells_blocks:
            events = events_config(options.engine.get("kv_events_config"), self._folder)
            options = with_engine(options, kv_events_config=events)
        self._options = options
        self._environment = environment
        self._counts = counts
        self._guard = Guard(self._mark, self._folder)
        self._given_up = False

    async def in_thread(self) -> Front:
        """Start vLLM in a thread. Cancelling ends what was started. Raises `EngineStartError`."""
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(None, self._run)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            self._given_up = True
            await loop.run_in_executor(None, self._guard.end)
            future.add_done_callback(_close_late)
            raise

    def _run(self) -> Front:
        try:
            with processes_start(self._mark, self._folder, self._environment):
                args = _arguments(self._model, self._options.engine)
                config = args.create_engine_config(UsageContext.LLM_CLASS)
                load_parsers(self._options.frontend, config.structured_outputs_config)
                if self._given_up:
                    raise EngineStartError("the start was given up")
                llm = AsyncLLM.from_vllm_config(
                    config,
                    usage_context=UsageContext.LLM_CLASS,
                    enable_log_requests=args.enable_log_requests,
                    aggregate_engine_logging=args.aggregate_engine_logging,
                    disable_log_stats=args.disable_log_stats,
                    stat_loggers=[self._counts],
                )
                if args.disable_log_stats:
                    # vLLM's Prometheus logger costs each step more.
                    llm.logger_manager.stat_loggers = [self._counts]
                    if config.observability_config.otlp_traces_endpoint is None:
                        # The scheduler's statistics suffice; those of tokens cost each of them
                        # time. What takes in outputs begins with the first request.
                        llm.log_stats = llm.output_processor.log_stats = False
        except BaseException as error:
            self._guard.end()
            if isinstance(error, PenstockError) or not isinstance(error, Exception):
                raise
            raise EngineStartError(
                f"'{self._model}' could not be loaded: {_reason(error)}{version_note()}"
            ) from error
        self._guard.note_shared_memory()
        return Front(llm, args, self._options, self._guard)


def _close_late(future: asyncio.Future[Front]) -> None:
    if not future.cancelled() and future.exception() is None:  # it had just succeeded
        future.get_loop().run_in_executor(None, future.result().close)


class Front:
    """vLLM's `AsyncLLM` with its processes. All but `close` runs in the event loop's thread."""

    def __init__(self, llm: Any, args: Any, options: VLLMOptions, guard: Guard) -> None:
        self.llm = llm
        scheduler = llm.vllm_config.scheduler_config.scheduler_cls
        self.shares_steps = isinstance(scheduler, str) and scheduler.startswith(_SCHEDULERS)
        self.args = args
        self.options = options
        self.config = llm.vllm_config
        self.died: asyncio.Future[None] | None = None
        self._guard = guard
        # Empty if Ray holds them.
        self._processes = list(getattr(llm.engine_core.resources.engine_manager, "processes", ()))
        self._watched: list[int] = []

    @property
    def vocabulary(self) -> int:
        """Token ids are below it."""
        size: int = self.config.model_config.get_vocab_size()
        return max(size, len(self.llm.tokenizer or ()))

    async def capabilities(self) -> Capabilities:
        """What this model can do with these options."""
        config, model = self.config, self.config.model_config
        tasks = set(await self.llm.get_supported_tasks())
        if "classify" in tasks and getattr(model.hf_config, "num_labels", 0) == 1:
            tasks.add("score")  # one class: a cross-encoder
        methods = {method for task in tasks for method in _TASKS.get(task, ())}
        generates = "generate" in tasks
        if self.llm.tokenizer is not None:
            methods |= {"tokenize", "detokenize", *(("decide",) if generates else ())}
        logprobs = model.max_logprobs if model.max_logprobs >= 0 else model.get_vocab_size()
        concurrency = (
            config.scheduler_config.max_num_seqs * config.parallel_config.data_parallel_size
        )
        return Capabilities(
            tasks=frozenset(methods),
            context_length=model.max_model_len,
            max_concurrency=concurrency,
            # Answers of one length end in the same step, which then needs as many new requests.
            batch_in_flight=2 * concurrency,
            structured=frozenset({"json_schema", "json_object", "regex", "grammar"})
            if generates
            else frozenset(),
            max_top_logprobs=logprobs if generates else -1,
            adapters=config.lora_config is not None,
            prompt_logprobs=generates,
            logit_bias=generates,
            triggers=generates,
            extra=_EXTRA - self._untrusted() if generates else frozenset(),
            prefix_caching=generates and bool(config.cache_config.enable_prefix_caching),
            inputs=("text", *media_of(model)),
            vocabulary=self.vocabulary,
            vectors=tuple(kind for task, kind in _VECTORS.items() if task in tasks) or ("dense",),
        )

    def _untrusted(self) -> frozenset[str]:
        """The parameters that these options do not let requests have."""
        names: set[str] = set()
        if not self.options.frontend.get("trust_request_mm_kwargs"):
            names |= {"mm_processor_kwargs", "media_io_kwargs"}
        if self.config.kv_transfer_config is None:
            names.add("kv_transfer_params")
        return frozenset(names)

    # Death
    def watch(self) -> None:
        """Set `died`: a future that completes as soon as an engine process ends."""
        loop = asyncio.get_running_loop()
        self.died = loop.create_future()
        for process in self._processes:
            self._watched.append(process.sentinel)
            loop.add_reader(process.sentinel, self._on_death)

    @property
    def alive(self) -> bool:
        """Whether the engine can answer requests."""
        return not self.llm.errored and not (self.died is not None and self.died.done())

    def why_dead(self) -> str:
        """How the engine ended, in one line."""
        for process in self._processes:
            code = process.exitcode
            if code is not None and code < 0:
                return f"vLLM's engine process was ended by {signal.Signals(-code).name}"
            if code:
                return f"vLLM's engine process ended with exit code {code}"
        return "vLLM's engine process ended"

    def fail_requests(self) -> None:
        """Fail all running requests as those of a dead engine."""
        self._on_death()
        self.llm.output_processor.propagate_error(CoreDead())

    def close(self) -> None:
        """Stop vLLM, and kill what is left of its processes. Takes a while."""
        with contextlib.suppress(Exception):  # it may be half dead
            self.llm.shutdown(timeout=_CPU_STOP_SECONDS if self.options.cpu else None)
        self._guard.end()
        for process in self._processes:
            # A killed process would stay a zombie until this process starts another.
            process.join(_REAP_SECONDS)

    def _on_death(self) -> None:
        loop = asyncio.get_running_loop()
        for sentinel in self._watched:
            loop.remove_reader(sentinel)
        self._watched.clear()
        if self.died is not None and not self.died.done():
            self.died.set_result(None)


def _arguments(model: str, given: Mapping[str, Any]) -> Any:
    """vLLM's engine arguments. Mappings, as files have them, become vLLM's configurations.

    Raises `ConfigError` for a mapping that its configuration does not take.
    """
    taken = dict(given)
    for field in dataclasses.fields(AsyncEngineArgs):
        value = taken.get(field.name)
        kinds = [
            kind for kind in (field.type, *get_args(field.type)) if dataclasses.is_dataclass(kind)
        ]
        if isinstance(value, Mapping) and len(kinds) == 1:
            try:
                taken[field.name] = kinds[0](**value)  # type: ignore[operator]
            except Exception as error:
                raise ConfigError(
                    _reason(error), field=f"engine_kwargs.{field.name}", value=value
                ) from None
    return AsyncEngineArgs(model=model, **taken)


def _reason(error: Exception) -> str:
    """The text of an error of vLLM's, which may be a validation report, in one line."""
    details = getattr(error, "errors", None)
    if callable(details):
        with contextlib.suppress(Exception):
            first = details()[0]
            where = ".".join(str(part) for part in first["loc"])
            return f"{where}: {first['msg']}" if where else str(first["msg"])
    return one_line(error) or type(error).__name__


def media_of(model: Any) -> tuple[str, ...]:
    """What messages to the model may hold beside texts, such as "image" and "video", as far as
    `limit_mm_per_prompt` and `language_model_only` let it.
    """
    if not model.is_multimodal_model:
        return ()
    info = MULTIMODAL_REGISTRY.get_processing_info(model)
    return tuple(medium for medium, most in info.allowed_mm_limits.items() if most)
