"""The parent's side of an engine whose model runs in a worker process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from abc import abstractmethod
from itertools import count
from pathlib import Path
from typing import Any, ClassVar

import msgspec

from penstock.engines.decisions.prompts import RequestTexts
from penstock.engines.decisions.trie import Shares
from penstock.engines.disk.sources import check_adapter
from penstock.engines.process import (
    Abort,
    Call,
    EngineProcess,
    Failed,
    Ready,
    Reply,
    Step,
    Submit,
    decode_to_parent,
    encode,
)
from penstock.engines.sampling import check_input_type, check_inputs, check_vectors
from penstock.engines.tasks import Batches, Mailbox
from penstock.engines.templates.chat_template import ChatTemplate
from penstock.engines.token_engine import GenerateRequest, TokenEngine
from penstock.errors import (
    EngineDeadError,
    EngineStartError,
    ModelNotFoundError,
    RequestError,
    UnsupportedError,
    by_kind,
    class_and_text,
)
from penstock.types import (
    DecideRequest,
    EmbeddingRequest,
    Embeddings,
    StructuredOutput,
    Tokens,
    Usage,
)

LOOK_SECONDS = 10.0
LOOKS = 6
"""A process that has work but sleeps through this many checks in a row is considered hung."""

STARTS = 3
"""How often a process is started that ends while it loads: somebody may have killed it."""

_log = logging.getLogger(__name__)


class WorkerEngine(TokenEngine):
    """An engine in front of the process `python -m WORKER`, which speaks
    `penstock.engines.process`.

    The worker has the methods `ping`, `tokenize`, `detokenize`, `encoded`, `embed`, `decide`,
    `add_adapter`, `remove_adapter`, `metrics` and `reset_prefix_cache`, as far as its model has the
    abilities.
    """

    worker: ClassVar[str]
    operations: ClassVar[frozenset[str]] = frozenset({"reset_prefix_cache"})

    def __init__(self, model_source: str, **kwargs: Any) -> None:
        super().__init__(model_source, **kwargs)
        self._process: EngineProcess | None = None
        self._changing = asyncio.Lock()
        self._watching: asyncio.Task[None] | None = None
        self._stops = 0
        self._ids = count(1)
        self._mailboxes: dict[int, Mailbox] = {}  # of requests that are under way in the process
        self._calls: dict[int, asyncio.Future[Any]] = {}
        self._not_running = f"the {self.name} engine is not running"
        self._why_dead = self._not_running
        self._answered_at = float("-inf")

    # Life
    @abstractmethod
    async def _load_message(self) -> msgspec.Struct:
        """The worker's first message: what to load. Raises `EngineStartError`."""

    @property
    def watched(self) -> bool:
        """Whether the process is killed if all its threads sleep while requests wait. Only on the
        CPU: with other devices, sleeping is normal.
        """
        return False

    async def start(self) -> None:
        async with self._changing:  # a second caller waits until the process runs
            for left in reversed(range(STARTS)):
                if self._process is not None:
                    return
                try:
                    await self._start()
                except EngineDeadError as error:
                    if not left or not error.suspects:  # or it was stopped
                        raise EngineStartError(
                            f"'{self.model_source}' could not be loaded"
                            f"{'' if left else f' in {STARTS} tries'}: {error}"
                        ) from None
                    _log.warning(
                        "'%s': %s while it loaded; it is started again", self.model_source, error
                    )

    async def _start(self) -> None:
        stops = self._stops
        load = await self._load_message()
        self._why_dead = self._not_running
        process = EngineProcess(
            self.worker, self._on_message, lambda why: self._on_death(process, why), self.cores
        )
        ready = self._calls[0] = asyncio.get_running_loop().create_future()
        await process.start()
        if self._stops != stops:  # it was stopped meanwhile
            del self._calls[0]
            await process.stop()
            raise EngineDeadError(self._not_running, suspects=False)
        self._process = process
        self.loop = asyncio.get_running_loop()
        try:
            process.send(encode(load))
            answer: Ready = await ready
            self.capabilities = answer.capabilities
            self.template = ChatTemplate(
                self.chat_template or answer.chat_template,
                answer.special_tokens,
                self.template_variables,
                images="image" in self.capabilities.inputs,
            )
            for name, path in self.adapters.items():
                await self._add_adapter(name, path)
            if self._watching is not None:
                self._watching.cancel()  # that of a process that died
            if self.watched and process.pid is not None:
                self._watching = asyncio.create_task(self._watch(process, process.pid))
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        self._stops += 1
        if self._process is not None:
            await self._process.reported()  # a death whose cause is not known yet
        process, self._process = self._process, None
        self.loop = None
        watching, self._watching = self._watching, None
        if watching is not None:
            watching.cancel()
        if process is not None:
            self._fail_all(suspects=False)
            await process.stop()

    async def check_health(self) -> None:
        await self._call("ping")

    async def _watch(self, process: EngineProcess, pid: int) -> None:
        watch = StuckWatch(pid, LOOKS)
        while self._process is process:
            await asyncio.sleep(LOOK_SECONDS)
            if not self._mailboxes and not self._calls:
                watch.forget()
            elif watch.is_stuck() and self._process is process:
                why = (
                    f"the engine process hung: it slept for {LOOKS * LOOK_SECONDS:g} s while"
                    " requests waited"
                )
                _log.error("%s; it is ended", why)
                self._on_death(process, why)
                process.kill()
                await process.stop()

    # Requests
    @property
    def idle_seconds(self) -> float:
        """Seconds since a request was last under way in the process; 0 while one is."""
        return 0.0 if self._mailboxes or self._calls else time.monotonic() - self._answered_at

    async def continue_prompt(self, request: GenerateRequest) -> Batches:
        sampling = request.sampling
        if sampling.structured is not None:
            sampling = msgspec.structs.replace(
                sampling, structured=await self._constraint(sampling.structured)
            )
        images, videos = (
            await self._files(request.images, request.videos)
            if request.images or request.videos
            else ((), ())
        )
        number = next(self._ids)
        mailbox = self._mailboxes[number] = Mailbox()
        finished = False
        try:
            self._send(
                Submit(
                    number,
                    request.prompt,
                    sampling,
                    request.adapter,
                    request.stream,
                    request.special_tokens,
                    request.marks,
                    request.batch,
                    time.monotonic(),
                    images,
                    videos,
                    request.image_mark,
                    request.video_mark,
                    request.beams,
                )
            )
            while not finished:
                batch = await mailbox.take()
                finished = batch[-1].finish_reason is not None
                yield batch
        finally:
            if self._mailboxes.pop(number, None) is not None:
                self._answered_at = time.monotonic()
                self._tell(Abort(number))

    async def _constraint(self, structured: StructuredOutput) -> StructuredOutput:
        """A constraint as the worker takes it. Raises `RequestError` for a dangerous one."""
        return structured

    async def answer(self, task: str, request: Any) -> Any:
        match task:
            case "embeddings":
                self._check_task(task)
                check_vectors(request.vectors, self.capabilities, self.name)
                check_inputs(request.inputs, self.name, sees="image" in self.capabilities.inputs)
                arguments = await self._embed_arguments(request)
                return msgspec.convert(await self._call("embed", *arguments), Embeddings)
            case "tokenize" | "detokenize":
                return await self._call(task, request)
        return await super().answer(task, request)

    async def _embed_arguments(self, request: EmbeddingRequest) -> tuple[Any, ...]:
        """The arguments of the worker's `embed`. Raises `RequestError`."""
        check_input_type(request, self.name)
        return request.inputs, request.dimensions

    async def encoded(self, text: str, special_tokens: bool, names: bool) -> Tokens:
        return msgspec.convert(await self._call("encoded", text, special_tokens, names), Tokens)

    async def control(self, operation: str, **options: Any) -> Any:
        if operation == "reset_prefix_cache":
            return await self._call(operation)
        return await super().control(operation, **options)

    # Adapters
    async def resolve_lora(self, name: str, path: str) -> None:
        check_adapter(name, path)
        await self._add_adapter(name, path)
        self.adapters[name] = path

    async def _add_adapter(self, name: str, path: str) -> None:
        await self._call("add_adapter", name, os.path.abspath(path))  # noqa: ASYNC240 (no disk)

    async def remove_lora(self, name: str) -> None:
        if name not in self.adapters:
            raise ModelNotFoundError(f"no adapter '{name}' is loaded", param="model")
        await self._call("remove_adapter", name)
        self.adapters.pop(name, None)

    async def metrics(self) -> dict[str, float]:
        return dict(await self._call("metrics"))

    # Messages
    def _send(self, message: msgspec.Struct) -> None:
        if self._process is None:
            raise EngineDeadError(self._why_dead, suspects=False)
        try:
            data = encode(message)
        except (
            TypeError,
            ValueError,
            OverflowError,
        ) as error:  # lone surrogates, integers of more than 64 bits
            raise RequestError(
                "the request holds a value that cannot be sent to the engine:"
                f" {class_and_text(error)}"
            ) from None
        self._process.send(data)

    async def label_shares(
        self, texts: RequestTexts, request: DecideRequest
    ) -> tuple[list[Shares], Usage]:
        if request.adapter is not None:
            raise UnsupportedError(
                "decisions are of the bare model; this request has an adapter", param="model"
            )
        answer = await self._call("decide", texts, request.questions)
        return msgspec.convert(answer, tuple[list[Shares], Usage])

    async def _call(self, method: str, *args: Any) -> Any:
        number = next(self._ids)
        future = self._calls[number] = asyncio.get_running_loop().create_future()
        try:
            self._send(Call(number, method, list(args)))
            return await future
        except asyncio.CancelledError:
            self._tell(Abort(number))
            raise
        finally:
            self._calls.pop(number, None)
            self._answered_at = time.monotonic()

    def _tell(self, message: msgspec.Struct) -> None:
        """Send a message that is dropped if the process is dead."""
        with contextlib.suppress(EngineDeadError):
            self._send(message)

    def _on_message(self, data: bytes) -> None:
        mailboxes = self._mailboxes
        match message := decode_to_parent(data):
            case Step():
                ended: list[int] = []
                for number, delta in message.deltas:
                    if (mailbox := mailboxes.get(number)) is not None:
                        mailbox.put(delta)
                        if delta.finish_reason is not None:
                            ended.append(number)
                if ended:  # their callers may take the deltas much later
                    self._answered_at = time.monotonic()
                for number in ended:  # the beams of a search end together
                    mailboxes.pop(number, None)
            case Failed():
                error = by_kind(message.kind, message.message, message.param)
                if (mailbox := mailboxes.pop(message.id, None)) is not None:
                    self._answered_at = time.monotonic()
                    mailbox.fail(error)
                else:
                    self._settle(message.id, error=error)
            case Reply():
                self._settle(message.id, value=message.value)
            case Ready():
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
        if self._process is process:  # else the engine was stopped, and may run another already
            self._why_dead = why
            self._process = None
            self.loop = None
            self._fail_all(killed=process.killed)
            self.on_death()

    def _fail_all(self, **about: bool) -> None:
        mailboxes, self._mailboxes = self._mailboxes, {}
        for mailbox in mailboxes.values():
            mailbox.fail(EngineDeadError(self._why_dead, **about))
        for number in list(self._calls):
            self._settle(number, error=EngineDeadError(self._why_dead, **about))


_STATE, _USER_TICKS, _SYSTEM_TICKS = 0, 11, 12
"""Positions among the fields of /proc/PID/stat that follow the name."""


class StuckWatch:
    """Finds out whether one process hangs. Ask at intervals, while the process should be at work.

    A process that waits for the CPU is ready to run, one that computes uses CPU time, one that
    waits for a disk says so. If `looks` checks in a row find all its threads asleep, and no CPU
    time used, the process waits for something that will never come.
    """

    def __init__(self, pid: int, looks: int) -> None:
        self._pid = pid
        self._looks = looks
        self._ticks: int | None = None
        self._alike = 0

    def is_stuck(self) -> bool:
        """Check the process now. Whether it slept at this check and since the `looks` before."""
        ticks = _ticks_if_asleep(self._pid)
        self._alike = self._alike + 1 if ticks is not None and ticks == self._ticks else 0
        self._ticks = ticks
        return self._alike >= self._looks

    def forget(self) -> None:
        """The process has nothing to do: begin to count anew."""
        self._ticks = None


def _ticks_if_asleep(pid: int) -> int | None:
    """The CPU time of a process in ticks if all its threads sleep; None if not, or if unknown."""
    try:
        total = 0
        for thread in os.listdir(f"/proc/{pid}/task"):
            stat = Path(f"/proc/{pid}/task/{thread}/stat").read_bytes()
            fields = stat.rpartition(b")")[2].split()
            if fields[_STATE] != b"S":
                return None
            total += int(fields[_USER_TICKS]) + int(fields[_SYSTEM_TICKS])
        return total
    except (OSError, IndexError, ValueError):
        return None
