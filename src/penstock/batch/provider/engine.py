"""An engine whose answers come from a provider's batches: the requests of rows become the lines of
a batch, and are answered when the batch has ended. And the step of a job with that engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, cast

from msgspec import Struct

from penstock.batch.pipeline.pipeline import EngineStep, Tries
from penstock.batch.provider.api import (
    DECIDING_OPTIONS,
    BatchApi,
    BatchApiOptions,
    BatchState,
    expired,
    unanswered,
)
from penstock.batch.provider.ledger import Batch, Gathering, Ledger
from penstock.batch.rows.requests import ColumnRequests
from penstock.batch.rows.row import Outcome, Row
from penstock.config import parse_options
from penstock.engines.base import Capabilities, LLMEngine
from penstock.engines.side_by_side import end_all
from penstock.engines.tasks import Batches, task_of
from penstock.errors import (
    ConfigError,
    EngineDeadError,
    EngineStartError,
    EngineTimeoutError,
    JobError,
    PenstockError,
    RequestError,
    UnsupportedError,
    UpstreamError,
)
from penstock.observability import say
from penstock.types import ChatRequest, CompletionRequest, Sampling

if TYPE_CHECKING:
    from penstock.batch.job.job import Job

T = TypeVar("T")

_log = logging.getLogger(__name__)
_AGAIN = "The same command takes up what it answers."
_TURN = 256  # rows that are woken before the event loop gets its turn


class Asking(Struct):
    """The row that asks, by a name that it has in every run of the job, and how often it has asked
    in this one.
    """

    row: str
    times: int = 0


asking: ContextVar[Asking] = ContextVar("asking")


class BatchApiEngine(LLMEngine):
    """Each request is a line of a batch. Call `keep` before `start`.

    A line's id is made of the row's name and how often that row has asked. So a job that is resumed
    finds the lines that it has submitted, and their answers.
    """

    api_class: ClassVar[type[BatchApi]]

    def __init__(self, model_source: str, **kwargs: Any) -> None:
        super().__init__(model_source, **kwargs)
        self.options = parse_options(BatchApiOptions, self.engine_kwargs, "engine_kwargs")
        self._api = self.api_class(self.options)
        self._state: tuple[Path, int, int] | None = None
        self._ledger: Ledger | None = None
        self._gathering: dict[str, Gathering] = {}
        self._known: dict[str, Batch] = {}
        self._waiting: dict[str, asyncio.Future[None]] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._left = False

    @classmethod
    def deciding_options(cls, engine_kwargs: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in engine_kwargs.items() if name in DECIDING_OPTIONS}

    def keep(self, folder: Path, key: int, generation: int) -> None:
        """Keep the batches in a job's state directory, under the job's key."""
        self._state = folder, key, generation
        self._job = f"{key & 0xFFFFFFFF:08x}"

    def check(self, sampling: Sampling) -> None:
        """Raise `RequestError` for what no line could ask."""

    # Life
    async def start(self) -> None:
        if self._ledger is not None:
            return
        if self._state is None:
            raise EngineStartError(
                f"the {self.name} engine answers jobs whose output is a file: its batches are"
                " found again by the state that is kept beside it"
            )
        try:
            await self._api.open()
        except ConfigError as error:
            raise EngineStartError(str(error)) from error
        self.capabilities: Capabilities = self._api.capabilities
        ledger = Ledger(*self._state)
        ledger.open()
        self._ledger, self._left = ledger, False
        self.loop = asyncio.get_running_loop()
        for batch in ledger.batches.values():
            if not batch.failed_whole:  # else the provider never took its lines
                self._take(batch)

    async def stop(self) -> None:
        ledger, self._ledger = self._ledger, None
        self.loop = None
        await end_all(list(self._tasks.values()))
        for gathering in self._gathering.values():
            gathering.out.close()
        self._gathering.clear()
        self._tasks.clear()
        self._known.clear()
        self._fail(self._waiting, EngineDeadError("the engine was stopped", suspects=False))
        await self._api.close()
        if ledger is not None:
            ledger.close()

    async def check_health(self) -> None:
        self._running()

    def let_go(self) -> None:
        """Stop waiting: the batches run on, and the next run finds them again."""
        if self._left or self._ledger is None:
            return
        self._left = True
        for batch in self._ledger.batches.values():
            if not (batch.answered or batch.status) and batch.error is None:
                say(self._leaving(batch))
        self._fail(self._waiting, expired("its batch runs on"))

    # Requests
    async def generate(self, request: ChatRequest | CompletionRequest) -> Batches:
        if request.adapter is not None:
            raise UnsupportedError(f"the {self.name} engine takes no adapters", param="adapter")
        yield await self._answered(task_of(request), request)

    async def answer(self, task: str, request: Any) -> Any:
        return await self._answered(task, request)

    async def _answered(self, task: str, request: Any) -> Any:
        ledger = self._running()
        if task not in self.capabilities.tasks:
            raise self._unsupported(task)
        asker = asking.get()
        url, body = self._api.body(task, request, self.model_source)
        while True:
            custom_id = f"{self._job}-{asker.row}-{asker.times}"
            asker.times += 1
            batch = self._known.get(custom_id)
            of_earlier_generation = batch is not None and batch.generation < ledger.generation
            if batch is None:
                self._add(url, custom_id, body)
            batch = await self._ended(custom_id)
            try:
                found = batch.result(custom_id)
                if found is None:
                    raise unanswered(batch, custom_id)
                return self._api.result(task, request, self._api.read(found))
            except PenstockError:
                if not of_earlier_generation:  # else it failed there, and is tried again
                    raise

    async def _ended(self, custom_id: str) -> Batch:
        """The batch of a line, once its results are here."""
        batch = self._known.get(custom_id)
        if batch is None or not batch.answered:
            if batch is not None and batch.error is not None:
                raise batch.error
            if self._left:
                raise expired("its batch runs on")
            future = self._waiting[custom_id] = asyncio.get_running_loop().create_future()
            try:
                await future
            finally:
                self._waiting.pop(custom_id, None)
            batch = self._known[custom_id]
        return batch

    # Lines become batches
    def _add(self, url: str, custom_id: str, body: dict[str, Any]) -> None:
        ledger = self._running()
        line = self._api.line(custom_id, url, body)
        if len(line) > self._api.most_bytes:
            raise RequestError(f"the line has {len(line):,} bytes, more than a batch may have")
        gathering = self._gathering.get(url)
        if gathering is not None and gathering.nbytes + len(line) > self._api.most_bytes:
            self._submit_gathered(url)
            gathering = None
        loop = asyncio.get_running_loop()
        if gathering is None:
            with _writing():
                gathering = Gathering(ledger.folder, ledger.new_token(), url)
            self._gathering[url] = gathering
            loop.call_later(self.options.gather_s, self._submit_if_quiet, gathering)
        with _writing():
            gathering.add(custom_id, line)
        gathering.since = loop.time()
        if len(gathering.lines) >= self._api.most_lines:
            self._submit_gathered(url)

    def _submit_if_quiet(self, gathering: Gathering) -> None:
        """Submit the lines gathered if no line was added for a while."""
        if self._gathering.get(gathering.url) is not gathering or self._left:
            return
        loop = asyncio.get_running_loop()
        quiet = loop.time() - gathering.since
        if quiet >= self.options.gather_s:
            with contextlib.suppress(JobError):  # all its rows wait by now, and raise it
                self._submit_gathered(gathering.url)
        else:
            loop.call_later(self.options.gather_s - quiet, self._submit_if_quiet, gathering)

    def _submit_gathered(self, url: str) -> None:
        """Begin the batch of the lines gathered. Raises `JobError`, and so do its waiting rows."""
        gathering = self._gathering.pop(url)
        try:
            gathering.close()
            batch = self._running().begin(gathering.token, url, time.time(), gathering.lines)
        except (OSError, PenstockError) as error:
            failure = JobError(str(error))
            self._fail(gathering.lines, failure)
            raise failure from error
        self._take(batch)

    def _take(self, batch: Batch) -> None:
        self._known.update(dict.fromkeys(batch.lines, batch))
        if not batch.answered:
            self._tasks[batch.token] = asyncio.create_task(self._see_through(batch))

    # Batches become answers
    async def _see_through(self, batch: Batch) -> None:
        """Submit a batch, unless that was done; wait for its end, download its results and wake the
        rows that wait for them.
        """
        try:
            while not batch.answered:
                if batch.id is None:
                    await self._patiently(lambda: self._submit(batch))
                await self._wait_for_end(batch)
                await self._fetch(batch)
                if not batch.id_is_certain and not batch.results_are_of_its_lines():
                    assert batch.id is not None
                    batch.strangers.add(batch.id)
                    batch.id, batch.status, batch.maybe_submitted = None, "", True
                    batch.forget_results()
            await self._wake_rows(batch)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            hint = ""
            if batch.id is None and getattr(error, "http_status", None) == 404:
                hint = f"Does base_url end where the API's paths begin, as {self._api.base_url}? "
            named = "" if batch.id is None else f"The batch is {batch.id}. "
            batch.error = JobError(f"{error}. {hint}{named}{_AGAIN}")
            self._fail(batch.lines, batch.error)
        finally:
            self._tasks.pop(batch.token, None)

    async def _submit(self, batch: Batch) -> None:
        """Submit a batch once, however often this is called: one that may have been submitted is
        looked for first.
        """
        ledger = self._running()
        if batch.maybe_submitted:
            # Only certain ids: another batch of this job may wait for one that only looks alike.
            taken = {each.id for each in ledger.batches.values() if each.id and each.id_is_certain}
            found = await self._api.find(batch, taken | batch.strangers)
            if found is not None:
                if found.certain:
                    ledger.note(batch, "created", id=found.id)
                batch.id = found.id
                return
        if batch.input_file_id is None and (file_id := await self._api.upload(batch)) is not None:
            ledger.note(batch, "uploaded", id=file_id)
        batch.maybe_submitted = True
        ledger.note(batch, "created", id=await self._api.create(batch))

    async def _wait_for_end(self, batch: Batch) -> None:
        ledger, id = self._running(), batch.id
        assert id is not None
        pause = self.options.first_poll_s
        while not batch.status:
            state = await self._patiently(lambda: self._state_of(id))
            if state.ended:
                lines = dict(enumerate(batch.lines, 1))
                line_errors = {
                    lines[number]: why
                    for number, why in state.line_errors.items()
                    if number in lines
                }
                if batch.id_is_certain:
                    ledger.note(
                        batch,
                        "ended",
                        status=state.status,
                        result_paths=state.result_paths,
                        line_errors=line_errors,
                    )
                else:
                    batch.result_paths, batch.status = state.result_paths, state.status
                if batch.failed_whole:
                    raise JobError(f"the provider refused the batch: {state.reason}")
                return
            await asyncio.sleep(pause * random.uniform(0.8, 1.2))
            pause = min(1.5 * pause, self.options.longest_poll_s)

    async def _state_of(self, id: str) -> BatchState:
        try:
            return await self._api.state(id)
        except UpstreamError as error:
            if error.http_status != 404:
                raise
            return BatchState("gone", ended=True)

    async def _fetch(self, batch: Batch) -> None:
        async def fetch() -> None:
            try:
                await self._api.download(batch.result_paths, batch.results)
            except UpstreamError as error:
                if error.http_status not in (404, 410):
                    raise
                batch.status = "its results are gone"
                await self._api.download([], batch.results)

        await self._patiently(fetch)
        await asyncio.to_thread(batch.index)

    async def _wake_rows(self, batch: Batch) -> None:
        for number, custom_id in enumerate(batch.lines):
            future = self._waiting.get(custom_id)
            if future is not None and not future.done():
                future.set_result(None)
            if number % _TURN == 0:
                await asyncio.sleep(0)

    async def _patiently(self, call: Callable[[], Awaitable[T]]) -> T:
        """What `call` returns. After an error that may pass it is called again, for `patience_s`;
        then its error is raised.
        """
        since: float | None = None
        pause = min(1.0, self.options.first_poll_s)
        loop = asyncio.get_running_loop()
        while True:
            try:
                return await call()
            except (UpstreamError, EngineTimeoutError) as error:
                since = since or loop.time()
                wait = max(pause * random.uniform(0.8, 1.2), error.retry_after or 0.0)
                left = self.options.patience_s - (loop.time() - since)
                if not error.retryable or wait > left:
                    raise
                _log.info("%s; asked again in %.0f s", error, wait)
            await asyncio.sleep(wait)
            pause = min(2 * pause, self.options.longest_poll_s)

    def _fail(self, lines: Any, error: Exception) -> None:
        for custom_id in list(lines):
            future = self._waiting.get(custom_id)
            if future is not None and not future.done():
                future.set_exception(error)

    def _leaving(self, batch: Batch) -> str:
        if batch.id is None:
            return f"A batch of {len(batch.lines):,} lines was being handed in. {_AGAIN}"
        return (
            f"The batch {batch.id} ({len(batch.lines):,} lines) runs on. {_AGAIN} To cancel it:\n"
            f"  {self._api.cancel_command(batch.id)}"
        )

    def _running(self) -> Ledger:
        if self._ledger is None:
            raise EngineDeadError(f"the {self.name} engine does not run", suspects=False)
        return self._ledger


@contextlib.contextmanager
def _writing() -> Iterator[None]:
    """Inside, a full disk stops the job: no row is to blame."""
    try:
        yield
    except OSError as error:
        raise JobError(f"the lines of a batch cannot be written: {error}") from error


@dataclass
class ProviderStep(EngineStep):
    """Tells the engine which row asks, so that its lines have the same ids in each run."""

    engine: BatchApiEngine

    def keep(self, folder: Path, key: int, generation: int) -> int | None:
        self.engine.keep(folder, key, generation)
        return self.engine.options.rows_in_flight

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncGenerator[int, None]:
        if isinstance(self.form, ColumnRequests):
            self.engine.check(self.form.sampling)
        async with super().running() as most:
            yield most

    def answer(self, row: Row, tries: Tries) -> Awaitable[Outcome]:
        # Rows with one digest ask once, unless each is to have an answer of its own.
        digest = row.digest.hex()
        name = digest[:24] if row.shareable else f"{digest[:12]}-{row.index}"
        asking.set(Asking(name))
        return super().answer(row, tries)

    def end(self) -> None:
        super().end()
        self.engine.let_go()


def provider_engine(job: Job, cls: type[BatchApiEngine]) -> BatchApiEngine:
    """The engine of a job through a provider's batches. Raises `ConfigError`."""
    if job.runtime != "local":
        raise ConfigError(f"{cls.name} runs in this process", field="runtime", value=job.runtime)
    if job.replicas != 1:
        raise ConfigError(f"{cls.name} has one queue", field="replicas", value=job.replicas)
    if job.output is None or os.fspath(job.output) == "-":
        raise ConfigError(
            f"{cls.name} needs an output whose job is kept, so that nothing is paid for twice",
            field="output",
        )
    model = job.model
    if not isinstance(model, str) or not model.strip():
        raise ConfigError("must name one model of the provider", field="model", value=model)
    if job.deterministic:
        cls.deterministic_options()
    return cls(model, engine_kwargs=cast(Mapping[str, Any] | None, job.engine_kwargs))
