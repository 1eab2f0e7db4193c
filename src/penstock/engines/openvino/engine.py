"""The embedded engine, seen from the parent: an async front for the worker process. Imports nothing of OpenVINO."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Sequence
from itertools import count
from typing import Any, ClassVar

import msgspec

from penstock.config import parse_options
from penstock.engines.adapter_files import check_adapter
from penstock.engines.base import Capabilities
from penstock.engines.chat_template import ChatTemplate
from penstock.engines.deltas import BatchedDeltas, Deltas
from penstock.engines.mailbox import Mailbox
from penstock.engines.openvino.find_model import check_tokenizer, find_model, stated_context_length
from penstock.engines.openvino.messages import (
    Abort,
    Call,
    Failed,
    Load,
    Ready,
    Reply,
    Step,
    Submit,
    ToWorker,
    decode_to_parent,
    encode,
)
from penstock.engines.openvino.model_files import MODEL_KINDS
from penstock.engines.openvino.options import OpenVINOOptions
from penstock.engines.process import EngineProcess
from penstock.engines.token_engine import GenerateRequest, TokenEngine
from penstock.errors import EngineDeadError, EngineStartError, ModelNotFoundError, by_kind
from penstock.types import (
    Delta,
    EmbeddingRequest,
    Embeddings,
    RerankRequest,
    Scores,
    Transcription,
    TranscriptionRequest,
)


class OpenVINOEngine(TokenEngine):
    """OpenVINO GenAI in a process of its own. `engine_kwargs` are those of `OpenVINOOptions`."""

    name: ClassVar[str] = "openvino"

    def __init__(self, model_source: str, **kwargs: Any) -> None:
        super().__init__(model_source, **kwargs)
        self.options = _for_this_machine(parse_options(OpenVINOOptions, self.engine_kwargs, "engine_kwargs"))
        for name, path in self.adapters.items():
            check_adapter(name, path)
        self._process: EngineProcess | None = None
        self._changing = asyncio.Lock()
        self._ids = count(1)
        self._mailboxes: dict[int, Mailbox] = {}
        self._calls: dict[int, asyncio.Future[Any]] = {}
        self._why_dead = "the openvino engine is not running"
        self._asleep = False

    def stated_context_length(self) -> int | None:
        return self.options.max_model_len or stated_context_length(self.model_source)

    # Life
    async def start(self) -> None:
        async with self._changing:  # who comes second finds it running, and not on its way
            if self._process is None:
                await self._start()

    async def _start(self) -> None:
        files = await asyncio.get_running_loop().run_in_executor(
            None, find_model, self.model_source, self.options.task, self.options.max_model_len
        )
        if self.options.tokenizer is not None:
            check_tokenizer(self.options.tokenizer, files.task)
        self.model_kind = MODEL_KINDS[files.task]
        process = EngineProcess(
            "penstock.engines.openvino.worker", self._on_message, lambda why: self._on_death(process, why)
        )
        ready: asyncio.Future[Ready] = asyncio.get_running_loop().create_future()
        self._calls[0] = ready
        await process.start()
        self._process = process
        try:
            self._send(Load(str(files.path), files.task, files.context_length, self.options))
            self._on_ready(await ready)
            for name, path in self.adapters.items():
                await self._call("add_adapter", name, path)
        except BaseException as error:
            await self.stop()
            if isinstance(error, EngineDeadError):
                raise EngineStartError(f"'{self.model_source}' could not be loaded: {error}") from None
            raise

    async def stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            self._fail_all()
            await process.stop()

    async def check_health(self) -> None:
        if self._asleep:
            return
        await self._call("ping")

    # Requests
    def generate(self, request: GenerateRequest) -> Deltas:
        return BatchedDeltas(self._generate(request))

    async def _generate(self, request: GenerateRequest) -> AsyncGenerator[list[Delta], None]:
        number = next(self._ids)
        mailbox = self._mailboxes[number] = Mailbox()
        finished = False
        try:
            self._send(
                Submit(
                    number, request.prompt, request.sampling, request.adapter, request.stream, request.special_tokens
                )
            )
            while not finished:
                batch = await mailbox.take()
                finished = batch[-1].finish_reason is not None
                yield batch
        finally:
            del self._mailboxes[number]
            if not finished and not mailbox.failed and self._process is not None:
                self._send(Abort(number))

    async def embeddings(self, request: EmbeddingRequest) -> Embeddings:
        self._check_task("embeddings")
        return msgspec.convert(await self._call("embed", request.inputs, request.dimensions), Embeddings)

    async def rerank(self, request: RerankRequest) -> Scores:
        self._check_task("rerank")
        return msgspec.convert(await self._call("rerank", request.query, request.documents), Scores)

    async def transcriptions(self, request: TranscriptionRequest) -> Transcription:
        self._check_task("transcriptions")
        result = await self._call(
            "transcribe", request.audio, request.language, request.task, request.max_tokens, request.timestamps
        )
        return msgspec.convert(result, Transcription)

    async def tokenize(self, text: str) -> list[int]:
        ids: list[int] = await self._call("tokenize", text)
        return ids

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        return str(await self._call("detokenize", list(token_ids)))

    # Adapters
    async def resolve_lora(self, name: str, path: str) -> None:
        check_adapter(name, path)
        await self._call("add_adapter", name, os.path.abspath(path))  # noqa: ASYNC240 - touches no disk
        self.adapters[name] = path

    async def remove_lora(self, name: str) -> None:
        if self.adapters.pop(name, None) is None:
            raise ModelNotFoundError(f"no adapter '{name}' is loaded", param="model")
        await self._call("remove_adapter", name)

    async def metrics(self) -> dict[str, float]:
        counts: dict[str, float] = await self._call("metrics")
        return counts

    # Control
    async def sleep(self, level: int = 1) -> None:
        """End the process, which gives all its memory back."""
        self._asleep = True
        self._why_dead = "the openvino engine is asleep"
        await self.stop()

    async def wakeup(self) -> None:
        self._asleep = False
        await self.start()

    async def is_sleeping(self) -> bool:
        return self._asleep

    async def reset_prefix_cache(self) -> None:
        await self._call("reset_prefix_cache")

    # Messages
    def _send(self, message: ToWorker) -> None:
        if self._process is None:
            raise EngineDeadError(self._why_dead)
        self._process.send(encode(message))

    async def _call(self, method: str, *args: Any) -> Any:
        number = next(self._ids)
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._calls[number] = future
        try:
            self._send(Call(number, method, list(args)))
            return await future
        finally:
            self._calls.pop(number, None)

    def _on_message(self, data: bytes) -> None:
        message = decode_to_parent(data)
        if isinstance(message, Step):
            mailboxes = self._mailboxes
            for number, delta in message.deltas:
                if (mailbox := mailboxes.get(number)) is not None:
                    mailbox.put(delta)
        elif isinstance(message, Failed):
            error = by_kind(message.kind, message.message)
            if (mailbox := self._mailboxes.get(message.id)) is not None:
                mailbox.fail(error)
            else:
                self._settle(message.id, error=error)
        elif isinstance(message, Reply):
            self._settle(message.id, value=message.value)
        else:
            self._settle(0, value=message)

    def _settle(self, number: int, *, value: Any = None, error: Exception | None = None) -> None:
        future = self._calls.pop(number, None)
        if future is None or future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(value)

    def _on_death(self, process: EngineProcess, why: str) -> None:
        if self._process is process:  # else it was stopped, and another may run already
            self._why_dead = why
            self._process = None
            self._fail_all()

    def _fail_all(self) -> None:
        for mailbox in self._mailboxes.values():
            mailbox.fail(EngineDeadError(self._why_dead))
        for number in list(self._calls):
            self._settle(number, error=EngineDeadError(self._why_dead))

    def _on_ready(self, ready: Ready) -> None:
        options = self.options
        generates = "chat" in ready.tasks
        self.template = ChatTemplate(ready.chat_template, ready.special_tokens)
        self.capabilities = Capabilities(
            tasks=frozenset(ready.tasks),
            context_length=ready.context_length,
            max_concurrency=options.max_num_seqs if generates or "embeddings" in ready.tasks else 8,
            structured=frozenset({"json_schema", "json_object", "regex"}) if generates else frozenset(),
            max_top_logprobs=0 if generates else -1,
            adapters=generates,
            prefix_caching=generates and options.enable_prefix_caching,
        )


def _for_this_machine(options: OpenVINOOptions) -> OpenVINOOptions:
    """bf16 on one thread ends in SIGFPE when the model is loaded on a CPU with AMX, so f32 is taken there."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if options.inference_precision is None and options.device == "CPU" and 1 in (cpus, options.num_threads):
        return msgspec.structs.replace(options, inference_precision="f32")
    return options
