"""What can be asked of a model: the table of tasks, the methods that users call, and the deltas of
an answer.

A class that runs or reaches a model implements `generate`, `answer` and `control`. Users call the
methods named after tasks and operations, which pass on to these three. A subclass may override any
of those methods; our own code therefore calls them too, where it asks another object.

Deltas travel in batches between our own layers, and one by one to users. What an engine has ready
together travels together, so a layer costs a request once a step and not once a token.
"""

from __future__ import annotations

import asyncio
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import aclosing
from types import MethodType
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

from msgspec.structs import replace

from penstock.engines.side_by_side import end_all
from penstock.types import (
    ChatRequest,
    Classifications,
    ClassifyRequest,
    CompletionRequest,
    DecideRequest,
    Decisions,
    Delta,
    EmbeddingRequest,
    Embeddings,
    RerankRequest,
    Scores,
    Speech,
    SpeechRequest,
    TokenizeRequest,
    TokenizerInfo,
    Tokens,
    Transcription,
    TranscriptionRequest,
)


class Task(NamedTuple):
    """The types of a task's request and result. A task that `streams` gives many results."""

    request: Any
    result: Any
    streams: bool = False


TASKS: dict[str, Task] = {
    "chat": Task(ChatRequest, Delta, streams=True),
    "completions": Task(CompletionRequest, Delta, streams=True),
    "embeddings": Task(EmbeddingRequest, Embeddings),
    "score": Task(RerankRequest, Scores),
    "rerank": Task(RerankRequest, Scores),
    "classify": Task(ClassifyRequest, Classifications),
    "decide": Task(DecideRequest, Decisions),
    "transcriptions": Task(TranscriptionRequest, Transcription),
    "speech": Task(SpeechRequest, Speech),
    "tokenize": Task(str, list[int]),
    "detokenize": Task(list[int], str),
    "tokens": Task(TokenizeRequest, Tokens),
    "tokenizer_info": Task(None, TokenizerInfo),
}


def task_of(request: ChatRequest | CompletionRequest) -> str:
    """The task of a request for `generate`."""
    return "chat" if isinstance(request, ChatRequest) else "completions"


def generated(model: Tasks, request: ChatRequest | CompletionRequest) -> Batches:
    """The batches of a model, asked by the method of the task if a subclass has its own."""
    task = task_of(request)
    method = getattr(model, task)
    if method == MethodType(getattr(Tasks, task), model):
        return model.generate(request)  # without the layers for users
    return in_batches(method(request))


class Tasks:
    """A method for each task, on top of `generate` and `answer`."""

    def generate(self, request: ChatRequest | CompletionRequest) -> Batches:
        """Continue a conversation or a prompt. Closing the batches early aborts the request."""
        raise NotImplementedError

    async def answer(self, task: str, request: Any) -> Any:
        """The result of a task that does not stream."""
        raise NotImplementedError

    def chat(self, request: ChatRequest) -> Deltas:
        """Continue a conversation. Closing the deltas early aborts the request."""
        return BatchedDeltas(self.generate(request))

    def completions(self, request: CompletionRequest) -> Deltas:
        """Continue a prompt. Closing the deltas early aborts the request."""
        return BatchedDeltas(self.generate(request))

    def embeddings(self, request: EmbeddingRequest) -> Coroutine[Any, Any, Embeddings]:
        return self.answer("embeddings", request)

    def score(self, request: RerankRequest) -> Coroutine[Any, Any, Scores]:
        """Score documents against a query; unsorted, as `rerank`."""
        return self.answer("score", request)

    def rerank(self, request: RerankRequest) -> Coroutine[Any, Any, Scores]:
        """Score documents against a query."""
        return self.answer("rerank", request)

    def classify(self, request: ClassifyRequest) -> Coroutine[Any, Any, Classifications]:
        """Sort texts into the model's classes."""
        return self.answer("classify", request)

    def decide(self, request: DecideRequest) -> Coroutine[Any, Any, Decisions]:
        """Answer questions about an input with the probability of each possible answer."""
        return self.answer("decide", request)

    def transcriptions(self, request: TranscriptionRequest) -> Coroutine[Any, Any, Transcription]:
        return self.answer("transcriptions", request)

    def speech(self, request: SpeechRequest) -> Coroutine[Any, Any, Speech]:
        """A text, spoken by one of the model's voices."""
        return self.answer("speech", request)

    def tokenize(self, text: str) -> Coroutine[Any, Any, list[int]]:
        """Token ids of a text, special tokens in it recognised, none added."""
        return self.answer("tokenize", text)

    def detokenize(self, token_ids: Sequence[int]) -> Coroutine[Any, Any, str]:
        """Text of token ids, special tokens left out."""
        return self.answer("detokenize", list(token_ids))

    def tokens(self, request: TokenizeRequest) -> Coroutine[Any, Any, Tokens]:
        """Token ids of a text or a conversation, as the model is fed them."""
        return self.answer("tokens", request)

    def tokenizer_info(self, _: None = None) -> Coroutine[Any, Any, TokenizerInfo]:
        """What the model's tokenizer is."""
        return self.answer("tokenizer_info", None)


PauseMode = Literal["wait", "abort", "keep"]


class Operations:
    """What operators ask of a running engine, as methods."""

    async def control(self, operation: str, **options: Any) -> Any:
        """Do an operation. Its options are those of the method of its name."""
        raise NotImplementedError

    async def sleep(self, level: int = 1) -> None:
        """Give memory back until `wakeup`."""
        await self.control("sleep", level=level)

    async def wakeup(self) -> None:
        await self.control("wakeup")

    async def is_sleeping(self) -> bool:
        """Whether the engine is asleep."""
        return bool(await self.control("is_sleeping"))

    async def pause(self, mode: PauseMode = "wait") -> None:
        """Hold new requests. Those in flight finish ("wait"), end ("abort") or rest ("keep")."""
        await self.control("pause", mode=mode)

    async def resume(self) -> None:
        await self.control("resume")

    async def is_paused(self) -> bool:
        """Whether the engine is paused."""
        return bool(await self.control("is_paused"))

    async def reset_prefix_cache(self) -> None:
        await self.control("reset_prefix_cache")

    async def start_profile(self) -> None:
        await self.control("start_profile")

    async def stop_profile(self) -> None:
        """End a profile and write it."""
        await self.control("stop_profile")

    async def collective_rpc(
        self, method: str, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call a method on every worker of the engine."""
        return await self.control("collective_rpc", method=method, args=args, kwargs=kwargs or {})


Batches: TypeAlias = AsyncGenerator[list[Delta], None]
"""What `generate` returns. No batch is empty. Closing the generator aborts the request; an error of
the request is raised after the deltas that came before it.
"""


class Deltas(Protocol):
    """What `chat` and `completions` return: `Batches`, one delta at a time. An asynchronous
    generator of deltas is one.
    """

    def __aiter__(self) -> AsyncIterator[Delta]: ...

    def __anext__(self) -> Awaitable[Delta]: ...

    def aclose(self) -> Awaitable[None]: ...


class BatchedDeltas:
    """Batches of deltas, iterated one delta at a time."""

    def __init__(self, batches: Batches) -> None:
        self.batches = batches
        self._rest: Iterator[Delta] = iter(())

    def __aiter__(self) -> BatchedDeltas:
        return self

    async def __anext__(self) -> Delta:
        for delta in self._rest:
            return delta
        self._rest = iter(await anext(self.batches))
        return next(self._rest)

    async def aclose(self) -> None:
        self._rest = iter(())
        await self.batches.aclose()


def in_batches(deltas: Deltas) -> Batches:
    """The batches of deltas; of a user's own generator, batches of one."""
    return deltas.batches if isinstance(deltas, BatchedDeltas) else _singly(deltas)


async def _singly(deltas: Deltas) -> Batches:
    async with aclosing(deltas):
        async for delta in deltas:
            yield [delta]


async def mapped(batches: Batches, change: Callable[[Delta], Delta]) -> Batches:
    """The batches with each delta changed."""
    async with aclosing(batches):
        async for batch in batches:
            yield [change(delta) for delta in batch]


async def merged(streams: Sequence[Batches], n: int = 1) -> Batches:
    """The batches of several streams as they come. Each stream has `n` answers; all answers are
    numbered in one sequence. The first failure ends all streams.
    """
    coming: asyncio.Queue[list[Delta] | Exception | None] = asyncio.Queue()

    async def read(number: int, batches: Batches) -> None:
        try:
            async with aclosing(batches):
                async for batch in batches:
                    coming.put_nowait([replace(d, index=number * n + d.index) for d in batch])
        except Exception as error:
            coming.put_nowait(error)
        finally:
            coming.put_nowait(None)

    tasks = [asyncio.create_task(read(*numbered)) for numbered in enumerate(streams)]
    try:
        left = len(tasks)
        while left:
            item = await coming.get()
            if item is None:
                left -= 1
            elif isinstance(item, Exception):
                raise item
            else:
                yield item
    finally:
        await end_all(tasks)


class Mailbox:
    """Deltas that an engine's loop has made for a request, until its one caller takes them."""

    __slots__ = ("_deltas", "_error", "_waiter")

    def __init__(self) -> None:
        self._deltas: list[Delta] = []
        self._error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None

    def put(self, delta: Delta) -> None:
        self._deltas.append(delta)
        self._wake()

    def fail(self, error: Exception) -> None:
        """End the request with an error, which is raised after the deltas that came before it."""
        self._error = error
        self._wake()

    async def take(self) -> list[Delta]:
        """All deltas that are there, at least one. Raises the error that `fail` was given."""
        while not self._deltas:
            if self._error is not None:
                raise self._error
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        taken, self._deltas = self._deltas, []
        return taken

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
