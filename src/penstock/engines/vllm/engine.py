"""The vLLM engine. Constructing it checks its options; `start` imports vLLM."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import Awaitable, Callable
from contextlib import aclosing, nullcontext
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import msgspec

from penstock.engines.base import Stated
from penstock.engines.decisions.prompts import RequestTexts
from penstock.engines.decisions.trie import Shares
from penstock.engines.disk import sources
from penstock.engines.disk.sources import check_adapter
from penstock.engines.sampling import check_sampling, prompt_sampling, with_seed
from penstock.engines.tasks import Batches, generated, task_of
from penstock.engines.token_engine import (
    Echo,
    TokenEngine,
    echoed,
    without_answer,
)
from penstock.engines.vllm import kv_cache, options
from penstock.engines.vllm.deciding import HeadWithMedia, asked, generated_shares
from penstock.engines.vllm.translation import DeltaMaker
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
from penstock.openai.parameters.engine import with_model_defaults
from penstock.openai.parsers.json_calls import HERMES
from penstock.openai.parsers.reader import AnswerReader
from penstock.openai.parsers.text import Offered
from penstock.types import ChatRequest, CompletionRequest, DecideRequest, Usage

if TYPE_CHECKING:
    from penstock.engines.vllm.prompts import Prepared, Shown
    from penstock.engines.vllm.running import Running

T = TypeVar("T")


class VLLMEngine(TokenEngine):
    """vLLM through its `AsyncLLM`. `engine_kwargs` are vLLM's engine arguments, and its server's
    arguments that concern requests (`tool_call_parser`, `enable_auto_tool_choice`, `chat_template`
    …).
    """

    name: ClassVar[str] = "vllm"
    makes_ranks: ClassVar[bool] = True
    costs_only: ClassVar[frozenset[str]] = options.COSTS_ONLY
    operations: ClassVar[frozenset[str]] = frozenset(
        {
            *("sleep", "wakeup", "is_sleeping", "pause", "resume", "is_paused"),
            *("reset_prefix_cache", "start_profile", "stop_profile", "collective_rpc"),
        }
    )

    def __init__(self, model_source: str, **kwargs: Any) -> None:
        super().__init__(model_source, **kwargs)
        self.options = options.check_options(self.engine_kwargs, model_source)
        self.deterministic = self.options.deterministic
        for name, path in self.adapters.items():
            check_adapter(name, path, self.options.engine.get("max_lora_rank", 16))
        self.connector = kv_cache.checked_connector(self.options)
        self._setup: Setup | None = None
        self._counts: kv_cache.Counts | None = None
        self._running: Running | None = None
        self._why_dead = "the vllm engine is not running"
        self._has_suspects = False  # else it was stopped while it ran

    @classmethod
    def deterministic_options(cls) -> dict[str, Any]:
        return {"deterministic": True}

    @classmethod
    def adapter_options(cls, most: int) -> dict[str, Any]:
        return {"enable_lora": True, "max_loras": most}

    def stated_context_length(self) -> int | None:
        given = self.options.engine.get("max_model_len")
        return given if isinstance(given, int) else sources.stated_context_length(self.model_source)

    def stated(self) -> Stated:
        given = self.options.engine
        runner = "pooling" if given.get("convert") in options.POOLED else given.get("runner", "")
        tasks = options.RUNNERS.get(runner)
        most = given.get("max_logprobs", options.MAX_LOGPROBS)
        most = most if isinstance(most, int) and most >= 0 else None
        return Stated(sources.stated_vocabulary(self.model_source), tasks, most)

    def describe(self) -> None:
        sources.describe(self.model_source)

    @property
    def shares_steps(self) -> bool:
        running = self._running
        return (
            running is not None
            and running.front.shares_steps
            and "completions" in self.capabilities.tasks
        )

    # Life
    async def start(self) -> None:
        if self._running is not None:
            if self._running.front.alive:
                return
            await self.stop()
        options.check_version()
        options.set_environment(self.options)
        loop = asyncio.get_running_loop()
        # The import takes seconds: in a thread, so that the event loop goes on.
        module = await loop.run_in_executor(None, import_module, "penstock.engines.vllm.running")
        given, blocks = self.options, self.cached_blocks
        if self.connector is not None:
            given, self._setup = await loop.run_in_executor(
                None, kv_cache.set_up, self.connector, self.options, self.site
            )
        setup = self._setup
        counts = kv_cache.Counts()
        variables = dict(setup.environment) if setup is not None else {}
        if self.deterministic:
            variables |= options.BATCH_INVARIANT
        if "scheduler_cls" in self.options.engine:
            variables[options.BATCH_CONFIG] = msgspec.json.encode(self.sharing).decode()
        try:
            source = self.model_source
            if self.options.engine.get("load_format") not in sources.STREAMED:
                source = await loop.run_in_executor(None, sources.model_for, source)
            starting = module.Starting(
                source,
                given,
                variables,
                tells_blocks=blocks is not None,
                counts=counts,
            )
            running: Running = await module.Running.start(starting, self.model_source, blocks)
        except BaseException:
            self._release()
            raise
        self._counts = counts
        self.capabilities = running.capabilities
        self.identity = setup.identity if setup is not None else None
        for name, path in self.adapters.items():
            running.adapters.know(name, path)
        if (template := running.prompts.text_template) is not None:
            self.template = template
        self._running = running
        self.loop = loop
        assert running.front.died is not None
        running.front.died.add_done_callback(lambda _: self._died(running))

    def _died(self, running: Running) -> None:
        if self._running is running:  # else it was stopped
            self.on_death()

    async def stop(self) -> None:
        running, self._running = self._running, None
        self.loop = None
        if running is None:
            return
        self._has_suspects = not running.front.alive
        self._why_dead = (
            running.front.why_dead() if self._has_suspects else "the vllm engine was stopped"
        )
        running.front.fail_requests()
        if running.events is not None:
            await running.events.close()
        await asyncio.get_running_loop().run_in_executor(None, running.front.close)
        self._release()

    def _release(self) -> None:
        """Release the setup of the KV connector."""
        setup, self._setup, self.identity = self._setup, None, None
        if setup is not None:
            setup.release()

    async def check_health(self) -> None:
        await self._ask(lambda running: running.llm.check_health())

    # Requests
    def generate(self, request: ChatRequest | CompletionRequest) -> Batches:
        return self._generate(request)

    async def _generate(
        self, request: ChatRequest | CompletionRequest, shown: Shown | None = None
    ) -> Batches:
        running = self._alive()
        begun = False
        try:
            prepared = await self._prepare(running, request, shown)
            maker = DeltaMaker(
                prepared.sampling,
                running.prompts.token_text,
                as_ids=bool(self.options.frontend.get("return_tokens_as_token_ids")),
            )
            translate = prepared.translate
            if self.cached_blocks is not None:
                running.note_blocks(self.cached_blocks, prepared, request.adapter)
            async with (
                running.adapters.use(request.adapter) if request.adapter else nullcontext() as lora,
                aclosing(
                    running.llm.generate(
                        prepared.prompt,
                        prepared.params,
                        f"{options.BATCH_ID if request.batch else ''}"
                        f"{request.request_id or uuid.uuid4().hex}",
                        lora_request=lora,
                        priority=_priority(request) if running.by_priority else 0,
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

    async def answer(self, task: str, request: Any) -> Any:
        running = self._alive()
        prompts = running.prompts
        if task in ("tokenize", "detokenize", "tokens", "tokenizer_info"):
            if prompts.tokenizer is None:
                raise self._unsupported(f"{task} without a tokenizer")
            if task == "tokens":
                try:
                    return await prompts.tokens(request)
                except Exception as error:
                    raise self._fault(running, error, preparing=True) from None
            if task == "tokenizer_info":
                return prompts.info()
            return prompts.ids(request) if task == "tokenize" else prompts.text(request)
        if task == "decide":
            return await super().answer(task, request)
        self._check_task("rerank" if task == "score" else task)
        return await self._ask(lambda running: running.answer(task, request))

    async def _asked(self, request: DecideRequest) -> RequestTexts:
        running = self._alive()
        prompts = running.prompts
        if prompts.text_template is None:  # the place of the questions cannot be found
            raise self._unsupported("decisions where the tokenizer writes conversations as tokens")
        if not prompts.reads_media:
            return await super()._asked(request)
        try:
            return await asked(request, prompts)
        except PenstockError:
            raise
        except Exception as error:
            raise self._fault(running, error, preparing=True) from None

    async def label_shares(
        self, texts: RequestTexts, request: DecideRequest
    ) -> tuple[list[Shares], Usage]:
        tokenizer = self._alive().prompts.tokenizer

        def encode(each: list[str], special_tokens: bool) -> list[list[int]]:
            return [list(tokenizer.encode(t, add_special_tokens=special_tokens)) for t in each]

        def generate(prompt: CompletionRequest, head: int) -> Batches:
            if isinstance(texts, HeadWithMedia):
                return self._generate(prompt, (texts.media, head))
            return generated(self, prompt)

        return await generated_shares(generate, texts, request, encode)

    # KV caches
    async def prompt_ids(self, request: ChatRequest | CompletionRequest) -> list[int] | None:
        running = self._alive()
        try:
            prepared = await self._prepare(running, request)
        except PenstockError:
            raise
        except Exception as error:
            raise self._fault(running, error, preparing=True) from None
        return prepared.token_ids

    def tell_cached_blocks(self) -> None:
        self.cached_blocks = self.cached_blocks or CachedBlocks()

    async def metrics(self) -> dict[str, float]:
        return {} if self._running is None or self._counts is None else self._counts.now()

    # Adapters
    async def resolve_lora(self, name: str, path: str) -> None:
        check_adapter(name, path, self.options.engine.get("max_lora_rank", 16))
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
    async def control(self, operation: str, **options: Any) -> Any:
        given = self.options.engine
        sleeps = given.get("enable_sleep_mode")
        if operation == "sleep" and not sleeps:
            raise self._unsupported(
                "sleep unless it is started with engine_kwargs.enable_sleep_mode"
            )
        if operation == "is_sleeping" and (self._running is None or not sleeps):
            return False
        if operation in ("start_profile", "stop_profile") and not given.get("profiler_config"):
            raise UnsupportedError(
                f"the {self.name} engine profiles when engine_kwargs.profiler_config is set"
            )
        result = await self._ask(lambda running: running.control(operation, **options))
        if operation == "reset_prefix_cache" and self.cached_blocks is not None:
            # vLLM sends the event with its next step, which an idle engine does not make.
            self.cached_blocks.clear()
        return result

    def build_asgi_app(self) -> Any:
        """vLLM's own HTTP application, around this engine while it runs."""

        async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
            await self._alive().native(scope, receive, send)

        return app

    # How
    async def _prepare(
        self,
        running: Running,
        request: ChatRequest | CompletionRequest,
        shown: Shown | None = None,
    ) -> Prepared:
        self._check_task(task_of(request))
        self._check_adapter(request.adapter)
        given = with_model_defaults(request.sampling, running.prompts.defaults)
        if isinstance(request, ChatRequest):
            request = msgspec.structs.replace(request, sampling=given)
            self._check_chat(request)
            return await self._prepare_chat(
                running, with_seed(request) if self.deterministic else request
            )
        request = msgspec.structs.replace(request, sampling=given)
        request = with_seed(request) if self.deterministic else request
        sampling, only_prompt = prompt_sampling(request)
        check_sampling(sampling, request.n, self.capabilities, self.name)
        prepared = await running.prompts.prepare_completion(request, sampling, shown)
        if request.echo:
            prompt = request.prompt
            echo = Echo(
                prompt if isinstance(prompt, str) else await self.detokenize(prompt),
                keep=given.prompt_logprobs is not None,
            )
            prepared.translate = (
                (lambda delta: echo(without_answer(delta))) if only_prompt else echo
            )
        elif only_prompt:
            prepared.translate = without_answer
        return prepared

    def _check_chat(self, request: ChatRequest) -> None:
        """Raise `RequestError` for what the options do not let a chat have."""
        given = self.options.frontend
        if (
            request.tools
            and request.tool_choice in (None, "auto")
            and given.get("enable_auto_tool_choice") is False
        ):
            raise RequestError(
                "this model makes no tool call by its own choice"
                " (engine_kwargs.enable_auto_tool_choice)",
                param="tool_choice",
            )

    async def _prepare_chat(self, running: Running, request: ChatRequest) -> Prepared:
        if running.parsed is not None and running.parsed.wants(request):
            check_sampling(request.sampling, request.n, self.capabilities, self.name)
            if request.tool_choice == "none" and not self._shows_unused_tools:
                request = msgspec.structs.replace(request, tools=None, tool_choice=None)
            return _with_echo(request, await running.parsed.prepare(request))
        tools = None if request.tool_choice == "none" else request.tools
        shown = request.tools if self._shows_unused_tools else tools
        sampling, forced = self._with_tools(request.sampling, tools, request.tool_choice, HERMES)
        check_sampling(sampling, request.n, self.capabilities, self.name)
        prepared = await running.prompts.prepare_chat(request, sampling, shown)
        if tools:
            reader = AnswerReader(
                request.request_id or uuid.uuid4().hex,
                offered=Offered(tools),
                forced=forced,
                one_call=not request.parallel_tool_calls,
            )
            prepared.translate = reader.translate
        return _with_echo(request, prepared)

    @property
    def _shows_unused_tools(self) -> bool:
        """Whether the model sees tools that it must not call."""
        return self.options.frontend.get("exclude_tools_when_tool_choice_none") is False

    def _alive(self) -> Running:
        running = self._running
        if running is None:
            raise EngineDeadError(self._why_dead, suspects=False)
        if not running.front.alive:
            raise EngineDeadError(running.front.why_dead(), suspects=False)
        return running

    async def _ask(self, call: Callable[[Running], Awaitable[T]]) -> T:
        """Await a call of vLLM's; raise `EngineDeadError` when the engine dies first."""
        running = self._alive()
        died = running.front.died
        assert died is not None
        asked: asyncio.Future[T] = asyncio.ensure_future(call(running))
        either: list[asyncio.Future[Any]] = [asked, died]
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not asked.done():
                raise self._death(running)
            return asked.result()
        except PenstockError as error:
            # vLLM's own application reports a death as any other failure.
            if isinstance(error, EngineError) and not running.front.alive:
                raise self._death(running) from None
            raise
        except Exception as error:
            raise self._fault(running, error, preparing=True) from None
        finally:
            asked.cancel()

    def _fault(self, running: Running, error: Exception, *, preparing: bool) -> PenstockError:
        if self._running is not running:
            return self._death(running)
        return running.fault(error, preparing=preparing)

    def _death(self, running: Running) -> EngineDeadError:
        if self._running is not running:
            return EngineDeadError(self._why_dead, suspects=self._has_suspects)
        return EngineDeadError(running.front.why_dead())


def _with_echo(request: ChatRequest, prepared: Prepared) -> Prepared:
    text, translate = echoed(request), prepared.translate
    if text:
        echo = Echo(text, tokens=False)
        prepared.translate = echo if translate is None else lambda delta: echo(translate(delta))
    return prepared


def _priority(request: ChatRequest | CompletionRequest) -> int:
    """Its own, behind that of every online request where it is of the batch class."""
    return request.priority + (options.BATCH_PRIORITY if request.batch else 0)
