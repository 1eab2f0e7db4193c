"""A started vLLM with everything that translates for it."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

from msgspec import Struct

from penstock.engines.prefix_index import block_hashes
from penstock.engines.vllm.adapters import Adapters
from penstock.engines.vllm.faults import as_penstock_error, one_line
from penstock.engines.vllm.front import Front, Starting
from penstock.engines.vllm.kv_cache import ranks
from penstock.engines.vllm.kv_events import KVEvents, local_endpoints, token_root
from penstock.engines.vllm.library import LoRARequest
from penstock.engines.vllm.native import NativeApp
from penstock.engines.vllm.translation.parsed_chat import ParsedChats
from penstock.engines.vllm.translation.pooling import classify, embed
from penstock.engines.vllm.translation.prompts import Prompts
from penstock.engines.vllm.translation.sampling import sampling_params
from penstock.errors import EngineError, ModelNotFoundError, PenstockError
from penstock.kv.cached_blocks import PROMPT_BLOCKS, CachedBlocks
from penstock.types import ChatRequest, CompletionRequest, Delta, Sampling

__all__ = ["Prepared", "Running", "Starting"]


class Prepared(Struct):
    """A request ready for `AsyncLLM.generate`. `translate` takes the text of each delta apart,
    where that is needed.
    """

    prompt: Any
    params: Any
    translate: Callable[[Delta], Delta] | None = None
    extras: dict[str, Any] = {}

    @property
    def token_ids(self) -> list[int] | None:
        """The prompt's token ids; None where it is more than that."""
        return list(self.prompt["prompt_token_ids"]) if self.prompt.get("type") == "token" else None


class Running:
    """The parts of a running engine. `open` makes it, in the event loop that it will be used in."""

    def __init__(self, front: Front, name: str) -> None:
        self.front = front
        self.llm = front.llm
        self.prompts = Prompts(front) if front.llm.tokenizer is not None else None
        self.native = NativeApp(front, name)
        self.parsed: ParsedChats | None = None
        self.events: KVEvents | None = None
        lora = front.config.lora_config
        slots = 0 if lora is None else lora.max_cpu_loras or lora.max_loras
        self.adapters = Adapters(
            slots - 1 if front.options.cpu else slots, self._load, self._unload
        )
        self._by_priority = front.config.scheduler_config.policy == "priority"

    @classmethod
    async def open(cls, front: Front, name: str, blocks: CachedBlocks | None = None) -> Running:
        """Everything for a front that has just started. `blocks` are told what it caches."""
        running = cls(front, name)
        front.watch()
        if blocks is not None:
            events = front.options.engine["kv_events_config"]
            running.events = KVEvents(local_endpoints(events, ranks(front.options)), blocks)
        if running.prompts is not None:
            await asyncio.get_running_loop().run_in_executor(None, running.prompts.learn)
        if running._needs_parsers:
            assert running.prompts is not None
            running.parsed = ParsedChats(front, await running.native.state(), running.prompts)
        return running

    async def answer(self, task: str, request: Any) -> Any:
        """The result of a task. vLLM's own application answers those of which its engine knows too
        little.
        """
        name = request.request_id or uuid.uuid4().hex
        match task:
            case "embeddings":
                assert self.prompts is not None
                return await embed(
                    self.front, self.prompts, request.inputs, request.dimensions, name
                )
            case "classify":
                assert self.prompts is not None
                return await classify(self.front, self.prompts, request.inputs, name)
            case "score" | "rerank":
                return await self.native.scores(request)
            case _:
                return await self.native.transcription(request)

    async def control(self, operation: str, **options: Any) -> Any:
        """Do an operation by vLLM's method for it."""
        llm = self.llm
        match operation:
            case "sleep":
                await llm.sleep(options["level"])
            case "wakeup":
                await llm.wake_up()
            case "pause":
                await llm.pause_generation(mode=options["mode"], clear_cache=False)
            case "resume":
                await llm.resume_generation()
            case "reset_prefix_cache":
                if await llm.reset_prefix_cache() is False:
                    raise EngineError("vLLM does not reset its prefix cache while requests use it")
            case "collective_rpc":
                args, kwargs = tuple(options["args"]), dict(options["kwargs"])
                return await llm.collective_rpc(options["method"], args=args, kwargs=kwargs)
            case _:  # the others have vLLM's own names
                return await getattr(llm, operation)()

    async def prepare_chat(
        self, request: ChatRequest, sampling: Sampling, tools: list[dict[str, Any]] | None
    ) -> Prepared:
        """A conversation; `sampling` and `tools` stand for the request's own."""
        assert self.prompts is not None
        ids = request.prompt_token_ids
        prompt = await (self.prompts.completion(ids) if ids else self.prompts.chat(request, tools))
        return self._prepared(prompt, request, sampling)

    async def prepare_completion(self, request: CompletionRequest) -> Prepared:
        """A text or token ids to continue."""
        assert self.prompts is not None
        given = request.prompt_token_ids or request.prompt
        prompt = await self.prompts.completion(given, special_tokens=request.special_tokens)
        return self._prepared(prompt, request, request.sampling)

    async def prepare_parsed(self, request: ChatRequest) -> Prepared:
        """A conversation whose answer vLLM's parsers read."""
        assert self.parsed is not None
        if self.prompts is not None:
            self.prompts.check_ids(request.sampling.stop_token_ids, "stop_token_ids")
        chat = await self.parsed.prepare(request)
        return Prepared(chat.prompt, chat.params, chat.translate, chat.extras)

    def wants_parsers(self, request: ChatRequest) -> bool:
        """Whether the answer is for vLLM's parsers."""
        return self.parsed is not None and self.parsed.wants(request)

    def adapter(self, name: str | None) -> AbstractAsyncContextManager[Any]:
        """vLLM's request for an adapter, which stays loaded meanwhile."""
        return contextlib.nullcontext() if name is None else self.adapters.use(name)

    def priority(self, wanted: int) -> int:
        """The priority to give; vLLM takes none when it does not schedule by it."""
        return wanted if self._by_priority else 0

    def note_blocks(self, blocks: CachedBlocks, prepared: Prepared, adapter: str | None) -> None:
        """Tell which blocks of tokens stand for the blocks that the request's router named."""
        names = PROMPT_BLOCKS.get()
        ids = prepared.token_ids if names else None
        if ids:
            blocks.asked(
                names,
                block_hashes(ids, self.front.config.cache_config.block_size, token_root(adapter)),
            )

    def fault(self, error: Exception, *, preparing: bool) -> PenstockError:
        """The error to raise for what vLLM raised."""
        return as_penstock_error(error, self.front.why_dead(), preparing=preparing)

    def _prepared(
        self, prompt: Any, request: ChatRequest | CompletionRequest, sampling: Sampling
    ) -> Prepared:
        assert self.prompts is not None
        # vLLM's core writes at these places of its logits, and ends where there are none.
        self.prompts.check_ids(sampling.stop_token_ids, "stop_token_ids")
        params = sampling_params(
            sampling,
            n=request.n,
            max_tokens=self.prompts.room(prompt, sampling.max_tokens),
            stream=request.stream,
            kv_transfer_params=request.kv_transfer_params,
        )
        return Prepared(prompt, params)

    @property
    def _needs_parsers(self) -> bool:
        config, frontend = self.front.config, self.front.options.frontend
        return bool(
            frontend.get("tool_call_parser")
            or config.structured_outputs_config.reasoning_parser
            or config.model_config.hf_config.model_type == "gpt_oss"
        )

    async def _load(self, name: str, number: int, path: str) -> Any:
        request = LoRARequest(lora_name=name, lora_int_id=number, lora_path=path)
        try:
            await self.llm.add_lora(request)
        except Exception as error:
            if not self.front.alive:
                raise
            raise ModelNotFoundError(
                f"adapter '{name}' cannot be loaded: {one_line(error)}", param="model"
            ) from None
        return request

    async def _unload(self, number: int) -> None:
        if self.front.alive:
            await self.llm.remove_lora(number)
