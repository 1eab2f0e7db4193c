"""The vLLM engine as Penstock sees it. Constructing it checks its options; vLLM is imported when it
starts.
"""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import msgspec

from penstock.engines import huggingface
from penstock.engines.adapter_files import adapter_rank
from penstock.engines.deltas import BatchedDeltas, Deltas
from penstock.engines.text.default_seed import with_seed
from penstock.engines.text.sampling_checks import check_sampling
from penstock.engines.token_engine import GenerateRequest, TokenEngine
from penstock.engines.vllm import environment, kv_cache, options
from penstock.engines.vllm.counts import Counts
from penstock.engines.vllm.translation.outputs import DeltaMaker
from penstock.errors import (
    EngineDeadError,
    EngineError,
    ModelNotFoundError,
    PenstockError,
    RequestError,
    UnsupportedError,
)
from penstock.kv.base import Setup
from penstock.kv.cached_blocks import CachedBlocks
from penstock.openai.tool_calls import ToolCallReader
from penstock.types import (
    ChatRequest,
    Classifications,
    ClassifyRequest,
    CompletionRequest,
    Delta,
    EmbeddingRequest,
    Embeddings,
    RerankRequest,
    Scores,
    Transcription,
    TranscriptionRequest,
    TranscriptionSegment,
    Usage,
)

if TYPE_CHECKING:
    from penstock.engines.vllm.front import Starting
    from penstock.engines.vllm.running import Prepared, Running

T = TypeVar("T")
Request = TypeVar("Request", ChatRequest, CompletionRequest)

_NOT_RUNNING = "the vllm engine is not running"


class VLLMEngine(TokenEngine):
    """vLLM through its `AsyncLLM`. `engine_kwargs` are vLLM's own engine arguments, and those of
    its server's that concern requests (`tool_call_parser`, `enable_auto_tool_choice`,
    `chat_template` …).
    """

    name: ClassVar[str] = "vllm"
    makes_ranks: ClassVar[bool] = True
    costs_only: ClassVar[frozenset[str]] = options.COSTS_ONLY

    def __init__(self, model_source: str, **kwargs: Any) -> None:
        super().__init__(model_source, **kwargs)
        self.options = options.check_options(self.engine_kwargs, model_source)
        self.deterministic = self.options.deterministic
        for name, path in self.adapters.items():
            self._check_adapter_files(name, path)
        self.connector = kv_cache.checked_connector(self.options)
        self._setup: Setup | None = None
        self._counts: Counts | None = None
        self._running: Running | None = None
        self._why_dead = _NOT_RUNNING

    @classmethod
    def deterministic_options(cls) -> dict[str, Any]:
        return {"deterministic": True}

    @classmethod
    def adapter_options(cls, most: int) -> dict[str, Any]:
        return {"enable_lora": True, "max_loras": most}

    def stated_context_length(self) -> int | None:
        return options.stated_context_length(self.options, self.model_source)

    # Life
    async def start(self) -> None:
        if self._running is not None:
            if self._running.front.alive:
                return
            await self.stop()
        options.check_version()
        environment.set_defaults(self.options)
        loop = asyncio.get_running_loop()
        # Importing vLLM and starting it take seconds each: in a thread, so that others are served
        # meanwhile.
        module = await loop.run_in_executor(None, import_module, "penstock.engines.vllm.running")
        model = huggingface.model_for(self.model_source)
        given, setup = self.options, None
        if self.connector is not None:
            given, setup = await loop.run_in_executor(
                None, kv_cache.set_up, self.connector, self.options, self.site
            )
            self._setup = setup
        blocks = self.cached_blocks
        counts = Counts() if setup is not None or blocks is not None else None
        variables = dict(setup.environment) if setup is not None else {}
        if self.deterministic:
            variables |= environment.BATCH_INVARIANT
        try:
            front = await _in_thread(
                module.Starting(
                    model, given, variables, tells_blocks=blocks is not None, counts=counts
                )
            )
            try:
                running: Running = await module.Running.open(front, self.model_source, blocks)
                self.capabilities = await front.capabilities()
            except BaseException:
                await loop.run_in_executor(None, front.close)
                raise
        except BaseException:
            self._release()
            raise
        self._counts = counts
        self.identity = setup.identity if setup is not None else None
        for name, path in self.adapters.items():
            running.adapters.know(name, path)
        if (
            running.prompts is not None
            and (template := running.prompts.text_template()) is not None
        ):
            self.template = template
        self._running = running
        self.loop = loop

    async def stop(self) -> None:
        running, self._running = self._running, None
        self.loop = None
        if running is None:
            return
        self._why_dead = (
            "the vllm engine was stopped" if running.front.alive else running.front.why_dead()
        )
        running.front.fail_requests()
        if running.events is not None:
            await running.events.close()
        await asyncio.get_running_loop().run_in_executor(None, running.front.close)
        self._release()

    def _release(self) -> None:
        """Give back what was taken for the KV connector."""
        setup, self._setup, self.identity = self._setup, None, None
        if setup is not None:
            setup.release()

    async def check_health(self) -> None:
        await self._ask(lambda running: running.llm.check_health())

    # Requests
    def chat(self, request: ChatRequest) -> Deltas:
        return BatchedDeltas(self._answers_of(self._prepare_chat, request))

    def completions(self, request: CompletionRequest) -> Deltas:
        return BatchedDeltas(self._answers_of(self._prepare_completion, request))

    def generate(self, request: GenerateRequest) -> Deltas:
        return self.completions(
            CompletionRequest(
                request.prompt,
                request.sampling,
                adapter=request.adapter,
                stream=request.stream,
                special_tokens=request.special_tokens,
            )
        )

    async def embeddings(self, request: EmbeddingRequest) -> Embeddings:
        self._check_running_task("embeddings")
        module = import_module("penstock.engines.vllm.running")
        return await self._ask(
            lambda running: module.embed(
                running.front,
                running.prompts,
                request.inputs,
                request.dimensions,
                _id(request.request_id),
            )
        )

    async def classify(self, request: ClassifyRequest) -> Classifications:
        self._check_running_task("classify")
        module = import_module("penstock.engines.vllm.running")
        return await self._ask(
            lambda running: module.classify(
                running.front, running.prompts, request.inputs, _id(request.request_id)
            )
        )

    async def rerank(self, request: RerankRequest) -> Scores:
        self._check_running_task("rerank")
        body = {"text_1": request.query, "text_2": request.documents}
        answer = await self._ask(lambda running: running.native.post("/score", body))
        ordered = sorted(answer["data"], key=lambda item: item["index"])
        return Scores([item["score"] for item in ordered], _usage(answer))

    async def transcriptions(self, request: TranscriptionRequest) -> Transcription:
        self._check_running_task("transcriptions")
        fields = {
            "language": request.language,
            "max_completion_tokens": request.max_tokens,
            "response_format": "verbose_json" if request.timestamps else "json",
        }
        given = {name: str(value) for name, value in fields.items() if value is not None}
        path = (
            "/v1/audio/translations" if request.task == "translate" else "/v1/audio/transcriptions"
        )
        answer = await self._ask(
            lambda running: running.native.post_file(path, request.audio, given)
        )
        segments = answer.get("segments")
        return Transcription(
            answer["text"],
            _usage(answer),
            (
                None
                if segments is None
                else tuple(msgspec.convert(segments, list[TranscriptionSegment]))
            ),
            answer.get("language"),
            None if answer.get("duration") is None else float(answer["duration"]),
        )

    async def tokenize(self, text: str) -> list[int]:
        prompts = self._alive().prompts
        if prompts is None:
            raise self._unsupported("tokenize without a tokenizer")
        return list(prompts.tokenizer.encode(text, add_special_tokens=False))

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        prompts = self._alive().prompts
        if prompts is None:
            raise self._unsupported("detokenize without a tokenizer")
        prompts.check_ids(token_ids, "tokens")
        return str(prompts.tokenizer.decode(list(token_ids), skip_special_tokens=True))

    # KV caches
    async def prompt_ids(self, request: ChatRequest | CompletionRequest) -> list[int] | None:
        running = self._alive()
        try:
            if isinstance(request, ChatRequest):
                prepared = await self._prepare_chat(running, request)
            else:
                prepared = await self._prepare_completion(running, request)
        except PenstockError:
            raise
        except Exception as error:
            raise self._fault(running, error, preparing=True) from None
        ids: list[int] | None = import_module("penstock.engines.vllm.running").token_ids(
            prepared.prompt
        )
        return ids

    def tell_cached_blocks(self) -> bool:
        if self.cached_blocks is None:
            self.cached_blocks = CachedBlocks()
        return True

    async def metrics(self) -> dict[str, float]:
        return {} if self._running is None or self._counts is None else self._counts.now()

    # Adapters
    async def resolve_lora(self, name: str, path: str) -> None:
        self._check_adapter_files(name, path)
        self._alive()
        if not self.capabilities.adapters:
            raise self._unsupported(
                "LoRA adapters unless it is started with engine_kwargs.enable_lora"
            )
        await self._ask(lambda running: running.adapters.add(name, os.path.abspath(path)))
        self.adapters[name] = path

    async def remove_lora(self, name: str) -> None:
        if self.adapters.pop(name, None) is None:
            raise ModelNotFoundError(f"no adapter '{name}' is loaded", param="model")
        await self._ask(lambda running: running.adapters.remove(name))

    # Control
    async def sleep(self, level: int = 1) -> None:
        if not self.options.engine.get("enable_sleep_mode"):
            raise self._unsupported(
                "sleep unless it is started with engine_kwargs.enable_sleep_mode"
            )
        await self._ask(lambda running: running.llm.sleep(level))

    async def wakeup(self) -> None:
        await self._ask(lambda running: running.llm.wake_up())

    async def is_sleeping(self) -> bool:
        if self._running is None or not self.options.engine.get("enable_sleep_mode"):
            return False
        return bool(await self._ask(lambda running: running.llm.is_sleeping()))

    async def pause(self, mode: str = "wait") -> None:
        await self._ask(lambda running: running.llm.pause_generation(mode=mode, clear_cache=False))

    async def resume(self) -> None:
        await self._ask(lambda running: running.llm.resume_generation())

    async def is_paused(self) -> bool:
        return bool(await self._ask(lambda running: running.llm.is_paused()))

    async def reset_prefix_cache(self) -> None:
        if await self._ask(lambda running: running.llm.reset_prefix_cache()) is False:
            raise EngineError("vLLM does not reset its prefix cache while requests use it")
        if self.cached_blocks is not None:
            # VLLM tells of it with its next step, for which an idle engine has no reason.
            self.cached_blocks.clear()

    async def start_profile(self) -> None:
        self._check_profiler()
        await self._ask(lambda running: running.llm.start_profile())

    async def stop_profile(self) -> None:
        self._check_profiler()
        await self._ask(lambda running: running.llm.stop_profile())

    async def collective_rpc(
        self, method: str, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return await self._ask(
            lambda running: running.llm.collective_rpc(
                method, args=tuple(args), kwargs=dict(kwargs or {})
            )
        )

    def build_asgi_app(self) -> Any:
        """vLLM's own HTTP application, around this engine while it runs."""

        async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
            await self._alive().native(scope, receive, send)

        return app

    # The way of a request
    async def _answers_of(
        self, prepare: Callable[[Running, Request], Awaitable[Prepared]], request: Request
    ) -> AsyncGenerator[list[Delta], None]:
        running = self._alive()
        maker = DeltaMaker(request.sampling.logprobs)
        begun = False
        try:
            prepared = await prepare(running, request)
            translate = prepared.translate
            if self.cached_blocks is not None:
                running.note_blocks(self.cached_blocks, prepared.prompt, request.adapter)
            async with (
                running.adapter(request.adapter) as lora,
                aclosing(
                    running.llm.generate(
                        prepared.prompt,
                        prepared.params,
                        _id(request.request_id),
                        lora_request=lora,
                        priority=running.priority(request.priority),
                        **prepared.extras,
                    )
                ) as outputs,
            ):
                async for output in outputs:
                    begun = True
                    if deltas := maker.deltas(output):
                        yield (
                            deltas if translate is None else [translate(delta) for delta in deltas]
                        )
        except PenstockError:
            raise
        except Exception as error:
            raise self._fault(running, error, preparing=not begun) from None

    async def _prepare_chat(self, running: Running, request: ChatRequest) -> Prepared:
        self._check_task("chat")
        self._check_adapter(request.adapter)
        request = with_seed(request) if self.deterministic else request
        if running.wants_parsers(request):
            check_sampling(request.sampling, request.n, self.capabilities, self.name)
            return await running.prepare_parsed(request)
        tools = None if request.tool_choice == "none" else request.tools
        sampling = self._with_tool_choice(request.sampling, tools, request.tool_choice)
        check_sampling(sampling, request.n, self.capabilities, self.name)
        prepared = await running.prepare_chat(request, sampling, tools)
        if tools:
            forced = sampling.structured is not request.sampling.structured
            if not forced and not running.takes_tools(request.chat_template):
                raise RequestError(
                    "this model's chat template shows it no tools; a call can only be required"
                    " (tool_choice)",
                    param="tools",
                )
            reader = ToolCallReader(
                _id(request.request_id), bare=forced, one_call=not request.parallel_tool_calls
            )
            prepared.translate = reader.translate
        return prepared

    async def _prepare_completion(self, running: Running, request: CompletionRequest) -> Prepared:
        self._check_task("completions")
        check_sampling(request.sampling, request.n, self.capabilities, self.name)
        self._check_adapter(request.adapter)
        request = with_seed(request) if self.deterministic else request
        prepared = await running.prepare_completion(request)
        if request.echo:
            text = (
                request.prompt
                if isinstance(request.prompt, str)
                else await self.detokenize(request.prompt)
            )
            prepared.translate = _Echo(text)
        return prepared

    def _alive(self) -> Running:
        running = self._running
        if running is None:
            raise EngineDeadError(self._why_dead, suspects=False)
        if not running.front.alive:
            raise EngineDeadError(running.front.why_dead(), suspects=False)
        return running

    async def _ask(self, call: Callable[[Running], Awaitable[T]]) -> T:
        """Ask vLLM for something that it answers once. Does not wait for an answer that will not
        come.
        """
        running = self._alive()
        died = running.front.died
        assert died is not None
        asked: asyncio.Future[T] = asyncio.ensure_future(call(running))
        either: list[asyncio.Future[Any]] = [asked, died]
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not asked.done():
                raise EngineDeadError(
                    self._why_dead if self._running is not running else running.front.why_dead()
                )
            return asked.result()
        except PenstockError as error:
            # As vLLM's own application tells a death.
            if isinstance(error, EngineError) and not running.front.alive:
                raise EngineDeadError(running.front.why_dead()) from None
            raise
        except Exception as error:
            raise self._fault(running, error, preparing=True) from None
        finally:
            asked.cancel()

    def _check_running_task(self, task: str) -> None:
        self._alive()
        self._check_task(task)

    def _fault(self, running: Running, error: Exception, *, preparing: bool) -> PenstockError:
        if self._running is not running:
            return EngineDeadError(self._why_dead)
        return running.fault(error, preparing=preparing)

    def _check_adapter_files(self, name: str, path: str) -> None:
        rank = adapter_rank(name, path)
        most = self.options.engine.get("max_lora_rank", 16)
        if rank > most:
            raise ModelNotFoundError(
                f"adapter '{name}' has rank {rank}, and engine_kwargs.max_lora_rank is {most}",
                param="model",
            )

    def _check_profiler(self) -> None:
        if not self.options.engine.get("profiler_config"):
            raise UnsupportedError(
                f"the {self.name} engine profiles when engine_kwargs.profiler_config is set"
            )


class _Echo:
    """Puts a text before each answer."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._begun: set[int] = set()

    def __call__(self, delta: Delta) -> Delta:
        if delta.index in self._begun:
            return delta
        self._begun.add(delta.index)
        return msgspec.structs.replace(delta, text=self._text + delta.text)


async def _in_thread(starting: Starting) -> Any:
    """The front that was started. Given up at once when this is cancelled."""
    loop = asyncio.get_running_loop()
    future = loop.run_in_executor(None, starting.run)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        await loop.run_in_executor(None, starting.give_up)
        future.add_done_callback(_close_late)
        raise


def _close_late(future: asyncio.Future[Any]) -> None:
    if not future.cancelled() and future.exception() is None:  # it had just succeeded
        future.get_loop().run_in_executor(None, future.result().close)


def _id(request_id: str) -> str:
    return request_id or uuid.uuid4().hex


def _usage(answer: Mapping[str, Any]) -> Usage:
    usage = answer.get("usage") or {}
    return Usage(usage.get("prompt_tokens") or 0, usage.get("completion_tokens") or 0)
