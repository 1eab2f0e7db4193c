"""Answers the lines of a batch by the models that the server has, within the server's limits, and
sums up the tokens of the answers.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from penstock.balance.backoff import wait_after
from penstock.batch.pipeline.pipeline import Asked as PipelineAsked, Tries, rolling
from penstock.batch.rows.openai_lines import ENDPOINTS, OpenAILines
from penstock.batch.rows.row import Outcome, Row
from penstock.errors import (
    BatchCancelledError,
    BatchExpiredError,
    EngineStartError,
    JobError,
    OverloadedError,
    PenstockError,
    UnavailableError,
    UnsupportedError,
)
from penstock.openai.responses import usage_in
from penstock.openai.responses_api import response_usage
from penstock.serve.api.limits import (
    check_asked,
    check_embedded,
    check_template,
    check_texts,
    within_limits,
)
from penstock.serve.config.settings import HttpSettings
from penstock.serve.models.handle import ModelHandle, ModelNames, Target
from penstock.types import (
    ChatRequest,
    ClassifyRequest,
    CompletionRequest,
    DecideRequest,
    EmbeddingRequest,
    RerankRequest,
    Usage,
)

MOST_ATTEMPTS = 3
UNLOADED_IN_FLIGHT = 64
"""Lines at a time for a replica whose concurrency is not known yet."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.25, 10.0
UNANSWERED = {BatchExpiredError.kind, BatchCancelledError.kind}


class ServedLines(OpenAILines):
    """The form of a batch's lines. A line that was not answered before the batch ended has an error
    and no response.
    """

    def failure(self, row: Row, error: PenstockError, stage: str, attempts: int) -> Outcome:
        outcome = super().failure(row, error, stage, attempts)
        if error.kind in UNANSWERED:
            outcome.response = None
        return outcome


def limited(settings: HttpSettings) -> Callable[[Any, int], Any]:
    """A function that checks a request against the server's limits, as its routes do, and bounds
    its answer. Its second argument is the number of requests in the same line. It raises
    `RequestError`.
    """
    limits = settings.limits

    def limit(request: Any, together: int) -> Any:
        if isinstance(request, ChatRequest):
            check_template(request.chat_template, settings)
            return within_limits(request, limits)
        if isinstance(request, CompletionRequest):
            return within_limits(request, limits, prompts=together)
        if isinstance(request, EmbeddingRequest):
            for one in request.inputs:
                if isinstance(one, ChatRequest):
                    check_template(one.chat_template, settings)
            check_embedded(request.inputs, limits)
        elif isinstance(request, ClassifyRequest):
            check_texts(request.inputs, limits, "input")
        elif isinstance(request, RerankRequest):
            check_texts((request.query, *request.documents), limits, "documents")
        elif isinstance(request, DecideRequest):
            check_template(request.chat_template, settings)
            check_asked(request, limits)
        return request

    return limit


class ServedStep:
    """The step of a batch: each line goes to the model that it names. All batches of the server
    share `slots`. While its model is full, loading or asleep, a line waits.
    """

    def __init__(
        self,
        form: ServedLines,
        models: ModelNames,
        model: str,
        slots: asyncio.Semaphore,
        most: int,
        answered: Callable[[str, Usage], None],
    ) -> None:
        self._form = form
        self._models = models
        self._model = model
        self._slots = slots
        self._most = most
        self._answered = answered
        self._under_way: set[asyncio.Timeout] = set()
        self._over = asyncio.Event()
        self._goes_on = asyncio.Event()
        self._goes_on.set()
        self._ended: Callable[[], PenstockError] | None = None

    def finish_with(self, why: Callable[[], PenstockError]) -> None:
        """Let all lines without an answer fail at once, with the error that `why` makes."""
        if self._ended is not None:
            return
        self._ended = why
        self._over.set()
        now = asyncio.get_running_loop().time()
        for limit in self._under_way:
            limit.reschedule(now)

    def pause(self, paused: bool) -> None:
        """With `paused`, begin no further line; else go on."""
        if paused:
            self._goes_on.clear()
        else:
            self._goes_on.set()

    def end(self) -> None:
        """End all retries: a line that waits for its next try gets it at once, as its last."""
        self._over.set()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncGenerator[int, None]:
        yield min(self._most, await self._wanted())

    async def answer(self, row: Row, tries: Tries) -> Outcome:
        if self._ended is not None:
            raise self._ended()
        try:
            async with asyncio.timeout(None) as limit:
                self._under_way.add(limit)
                try:
                    return await self._answer(row, tries)
                finally:
                    self._under_way.discard(limit)
        except TimeoutError:
            if self._ended is None:
                raise
            raise self._ended() from None

    def asked(self, row: Row) -> PipelineAsked | None:
        return None

    async def _answer(self, row: Row, tries: Tries) -> Outcome:
        target = await self._target(row)
        failures = waits = 0
        while True:
            try:
                return await self._ask(target.handle, row, tries)
            except PenstockError as error:
                if self._over.is_set():
                    raise
                if not isinstance(error, OverloadedError | UnavailableError):
                    failures += 1
                    if failures >= MOST_ATTEMPTS or not error.retryable:
                        if isinstance(error, EngineStartError):
                            raise JobError(
                                f"model '{target.name}' does not start: {error}"
                            ) from error
                        raise
                waits += 1
                wait = wait_after(error, waits, first=_FIRST_PAUSE_S, longest=_LONGEST_PAUSE_S)
            # Wait without a slot, so that lines of other models go on.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._over.wait()

    async def _target(self, row: Row) -> Target:
        """The model of a line. The line's request then names the model and its adapter."""
        request = row.request
        target = await self._models.find(request.model)
        if target.adapter is not None:
            if not ENDPOINTS[request.url].adapters:
                raise UnsupportedError(
                    f"{request.url} is of the bare model, not of an adapter", param="model"
                )
            asked = [replace(one, adapter=target.adapter) for one in request.asked.requests]
            request = request._replace(asked=request.asked._replace(requests=asked))
        row.request = request._replace(model=target.name)
        return target

    async def _ask(self, handle: ModelHandle, row: Row, tries: Tries) -> Outcome:
        """Ask the model once, in one of the slots, while the batch is not paused."""
        while True:
            await self._goes_on.wait()
            async with self._slots:
                if not self._goes_on.is_set():
                    continue
                if handle.state().is_paused:  # a paused model would hold the line, and the slot
                    raise UnavailableError(f"model '{handle.model_id}' is paused")
                tries.count += 1
                outcome = await self._form.ask(handle.for_batch(), row)
                if outcome.usage is not None:
                    self._answered(handle.model_id, outcome.usage)
                return outcome

    async def _wanted(self) -> int:
        """How many lines keep all replicas of the model full."""
        with contextlib.suppress(PenstockError):
            handle = (await self._models.find(self._model)).handle
            known = await handle.capabilities()
            each = UNLOADED_IN_FLIGHT if known is None else rolling(known)
            return each * handle.most_replicas
        return UNLOADED_IN_FLIGHT


class _Answer(Struct):
    usage: dict[str, Any] | None = None


class _Response(Struct):
    body: _Answer | None = None


class _Line(Struct):
    response: _Response | None = None


def output_usage(output: Path) -> dict[str, Any]:
    """The `usage` of a batch, in OpenAI's form."""
    decode = msgspec.json.Decoder(_Line).decode
    total = Usage()
    with output.open("rb") as file:
        for text in file:
            line = decode(text)
            if line.response is not None and line.response.body is not None:
                total += usage_in(line.response.body.usage or {})
    return response_usage(total)
