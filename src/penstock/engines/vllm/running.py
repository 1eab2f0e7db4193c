"""A started vLLM with all that translates for it, and vLLM's own HTTP application around it."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import uuid
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from types import SimpleNamespace
from typing import Any

import msgspec

from penstock.engines.base import Capabilities
from penstock.engines.sampling import check_input_type, check_inputs, check_vectors
from penstock.engines.side_by_side import all_of
from penstock.engines.vllm.adapters import Adapters
from penstock.engines.vllm.front import Front, Starting
from penstock.engines.vllm.kv_cache import KVEvents, local_endpoints, ranks, token_root
from penstock.engines.vllm.library import (
    FlexibleArgumentParser,
    LoRARequest,
    PoolingParams,
    VLLMClientError,
    as_penstock_error,
    build_app,
    httpx,
    init_app_state,
    make_arg_parser,
    one_line,
)
from penstock.engines.vllm.parsers import ParsedChats
from penstock.engines.vllm.prompts import Prepared, Prompts
from penstock.errors import (
    ContextLengthError,
    EngineError,
    ModelNotFoundError,
    PenstockError,
    RequestError,
    UnsupportedError,
)
from penstock.kv.cached_blocks import PROMPT_BLOCKS, CachedBlocks
from penstock.kv.prefix_index import block_hashes
from penstock.openai.responses import usage_in
from penstock.types import (
    Classification,
    Classifications,
    Embeddings,
    RerankRequest,
    Scores,
    Transcription,
    TranscriptionRequest,
    TranscriptionSegment,
    Usage,
)

__all__ = ["Prepared", "Running", "Starting"]


class Running:
    """The parts of a running engine. `start` makes it, in the event loop that will use it.

    `by_priority`: vLLM schedules by priority; else it refuses any priority but 0.
    """

    def __init__(self, front: Front, name: str) -> None:
        self.front = front
        self.llm = front.llm
        self.prompts = Prompts(front)
        self.native = NativeApp(front, name)
        self.parsed: ParsedChats | None = None
        self.events: KVEvents | None = None
        lora = front.config.lora_config
        slots = 0 if lora is None else lora.max_cpu_loras or lora.max_loras
        self.adapters = Adapters(
            slots - 1 if front.options.cpu else slots, self._load, self._unload
        )
        self.by_priority = front.config.scheduler_config.policy == "priority"
        self.capabilities: Capabilities

    @classmethod
    async def start(
        cls, starting: Starting, name: str, blocks: CachedBlocks | None = None
    ) -> Running:
        """Start vLLM; its application calls the model `name`. Raises `EngineStartError`."""
        front = await starting.in_thread()
        loop = asyncio.get_running_loop()
        events: KVEvents | None = None
        try:
            running = cls(front, name)
            front.watch()
            if blocks is not None:
                given = front.options.engine["kv_events_config"]
                events = KVEvents(local_endpoints(given, ranks(front.options)), blocks)
                running.events = events
            await loop.run_in_executor(None, running.prompts.learn)
            config = front.config
            if (
                front.options.frontend.get("tool_call_parser")
                or config.structured_outputs_config.reasoning_parser
                or config.model_config.hf_config.model_type == "gpt_oss"
            ):
                running.parsed = ParsedChats(front, await running.native.state(), running.prompts)
            running.capabilities = await front.capabilities()
            return running
        except BaseException:
            if events is not None:
                await events.close()
            await loop.run_in_executor(None, front.close)
            raise

    async def answer(self, task: str, request: Any) -> Any:
        """The result of a task. vLLM's own application answers those that its engine cannot."""
        name = request.request_id or uuid.uuid4().hex
        match task:
            case "embeddings":
                check_input_type(request, "vllm")
                check_inputs(request.inputs, "vllm")
                check_vectors(request.vectors, self.capabilities, "vllm")
                multi = request.vectors == "multi"
                made, usage = await self._pooled(
                    request.inputs,
                    name,
                    task="token_embed" if multi else "embed",
                    dimensions=request.dimensions,
                )
                return Embeddings([], usage, multi=made) if multi else Embeddings(made, usage)
            case "classify":
                return await self._classify(request.inputs, name)
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

    def note_blocks(self, blocks: CachedBlocks, prepared: Prepared, adapter: str | None) -> None:
        """Record which blocks of tokens stand for the blocks that the request's router named."""
        names = PROMPT_BLOCKS.get()
        ids = prepared.token_ids if names else None
        if ids:
            blocks.asked(
                names,
                block_hashes(ids, self.front.config.cache_config.block_size, token_root(adapter)),
            )

    def fault(self, error: Exception, *, preparing: bool) -> PenstockError:
        """Maps an error of vLLM's."""
        return as_penstock_error(error, self.front.why_dead(), preparing=preparing)

    async def _classify(self, texts: Sequence[str], name: str) -> Classifications:
        rows, usage = await self._pooled(texts, name, task="classify")
        labels = getattr(self.front.config.model_config.hf_config, "id2label", None) or {}
        items = []
        for row in rows:
            best = max(range(len(row)), key=row.__getitem__)
            items.append(Classification(str(labels.get(best, best)), row))
        return Classifications(items, usage)

    async def _pooled(
        self, texts: Sequence[str], name: str, **params: Any
    ) -> tuple[list[Any], Usage]:
        pooling = PoolingParams(**params)
        try:
            pooling.verify(self.front.config.model_config)
        except (VLLMClientError, ValueError) as error:
            if pooling.dimensions is None:
                raise
            why = f"vLLM refuses the request: {one_line(error)}"
            raise RequestError(why, param="dimensions") from error

        async def one(number: int, text: str) -> Any:
            prompt = await self.prompts.completion(text)
            async with aclosing(self.llm.encode(prompt, pooling, f"{name}-{number}")) as outputs:
                async for output in outputs:
                    last = output
            return last

        results = await all_of(one(*numbered) for numbered in enumerate(texts))
        return (
            [result.outputs.data.float().tolist() for result in results],
            Usage(prompt_tokens=sum(len(result.prompt_token_ids) for result in results)),
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


class NativeApp:
    """vLLM's own ASGI application, built on first use. It answers what vLLM's engine cannot, and
    serves those who want it whole.
    """

    def __init__(self, front: Front, name: str) -> None:
        self._front = front
        self._name = name
        self._app: Any = None
        self._building = asyncio.Lock()

    async def state(self) -> Any:
        """The application's state, which holds vLLM's handlers, its renderer and its parsers."""
        async with self._building:
            if self._app is None:
                args = _arguments(self._front, self._name)
                tasks = await self._front.llm.get_supported_tasks()
                app = build_app(args, tasks, self._front.llm.model_config)
                await init_app_state(self._front.llm, app.state, args, tasks)
                # vLLM asks its server to exit when the engine has died.
                app.state.server = SimpleNamespace()
                self._app = app
        return self._app.state

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.state()
        await self._app(scope, receive, send)

    async def scores(self, request: RerankRequest) -> Scores:
        """Score documents. Raises the error that stands for the status of the answer."""
        answer = await self._post(
            "/score",
            json={"model": self._name, "text_1": request.query, "text_2": request.documents},
        )
        ordered = sorted(answer["data"], key=lambda item: item["index"])
        return Scores([item["score"] for item in ordered], usage_in(answer.get("usage") or {}))

    async def transcription(self, request: TranscriptionRequest) -> Transcription:
        """Transcribe a recording. Raises as `scores`."""
        for param in ("words", "hotwords"):
            if getattr(request, param):
                what = "times of words" if param == "words" else "hotwords"
                raise UnsupportedError(
                    f"the vllm engine does not support {what} in transcriptions", param=param
                )
        fields = {
            "model": self._name,
            "language": request.language,
            "max_completion_tokens": request.max_tokens,
            "prompt": request.prompt or None,
            "response_format": "verbose_json" if request.timestamps else "json",
        }
        task = "translations" if request.task == "translate" else "transcriptions"
        data = {name: str(value) for name, value in fields.items() if value is not None}
        try:
            answer = await self._post(
                f"/v1/audio/{task}", data=data, files={"file": ("audio", request.audio)}
            )
        except RequestError as error:
            # vLLM names no parameter there.
            if error.param is None and request.language and repr(request.language) in str(error):
                error.param = "language"
            raise
        segments, duration = answer.get("segments"), answer.get("duration")
        return Transcription(
            answer["text"],
            usage_in(answer.get("usage") or {}),
            None
            if segments is None
            else msgspec.convert(segments, tuple[TranscriptionSegment, ...]),
            answer.get("language"),
            None if duration is None else float(duration),
        )

    async def _post(self, path: str, **content: Any) -> dict[str, Any]:
        # No network: httpx calls the application in this task, so cancelling reaches it. httpx
        # returns a response only when the application has finished, which suits whole answers.
        request = httpx.Request("POST", f"http://vllm{path}", **content)
        response = await httpx.ASGITransport(self).handle_async_request(request)
        result = json.loads(await response.aread() or b"{}")
        if response.status_code >= 400:
            raise _error(response.status_code, result)
        assert isinstance(result, dict)
        return result


def _arguments(front: Front, name: str) -> Any:
    """The arguments of vLLM's server that would have started this engine."""
    args = make_arg_parser(FlexibleArgumentParser()).parse_args([])
    for field in dataclasses.fields(front.args):
        setattr(args, field.name, getattr(front.args, field.name))
    args.structured_outputs_config = front.config.structured_outputs_config
    args.served_model_name = [name]
    args.enable_prompt_tokens_details = True
    for key, value in front.options.frontend.items():
        setattr(args, key, value)
    return args


def _error(status: int, body: Mapping[str, Any]) -> PenstockError:
    details = body.get("error", body)
    given = details if isinstance(details, Mapping) else {}
    message = one_line(ValueError(given.get("message", details)))
    if status >= 500:
        return EngineError(message)
    if "context length" in message or "maximum model length" in message:
        return ContextLengthError(f"prompt is too long: {message}")
    param = given.get("param")
    return RequestError(message, param=param if isinstance(param, str) else None)
