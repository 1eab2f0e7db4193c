"""Runs the batches of a server, each as a job with a journal: no answer is lost, whatever happens
to the server.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from contextvars import Context
from functools import partial
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from penstock import private_files
from penstock.batch.job.execution import execute
from penstock.batch.job.plan import Plan
from penstock.batch.job.result import Counts
from penstock.batch.read import open_source
from penstock.batch.write.outputs import Output
from penstock.errors import (
    BatchCancelledError,
    BatchExpiredError,
    JobHeldError,
    JobVersionError,
    NotStoredError,
    PenstockError,
    UnavailableError,
    class_and_text,
)
from penstock.serve.config.settings import BatchSettings, HttpSettings
from penstock.serve.models.handle import ModelNames
from penstock.service.batches import Batch, BatchStore, Fault, Tally
from penstock.service.content import is_full, is_passing, left_over, unavailable
from penstock.service.files import FileStore, UploadStore
from penstock.service.lines import (
    UNANSWERED,
    ServedLines,
    ServedStep,
    limited,
    output_usage,
)
from penstock.service.run import Run, Speed, too_late
from penstock.service.validation import Checked, check_input
from penstock.types import Usage

PROGRESS_S = 1.0
"""How often the counts of a batch under way are stored."""
SWEEP_S = 600.0
"""How often expired files, uploads and batches are deleted."""
DRAIN_S = 15.0
"""The longest wait for lines under way when the server stops."""
MOST_ROWS = 2048
"""The most rows of a batch in memory: the event loop sorts them while online requests wait."""
AGAIN_S = 5.0
"""The pause before a batch is tried again, after its database or storage did not answer."""
_WAITS = (UnavailableError, JobHeldError, JobVersionError)
"""Errors that pass: the database or storage does not answer, a server that lost the batch still
locks its folder, or one of another version must go on with it. A full disk passes too.
"""
_log = logging.getLogger("penstock.service")


class Runner:
    """Runs batches in this server. `folder` holds the batches under way. `ended` is called with
    each batch that has ended, `answered` with the model and tokens of each answered line.
    """

    def __init__(
        self,
        folder: Path,
        files: FileStore,
        batches: BatchStore,
        uploads: UploadStore,
        models: ModelNames,
        http: HttpSettings,
        settings: BatchSettings,
        ended: Callable[[Batch], Awaitable[None]],
        answered: Callable[[str, Usage], None],
    ) -> None:
        self._folder = folder
        self._files = files
        self._batches = batches
        self._uploads = uploads
        self._models = models
        self._http = http
        self._settings = settings
        self._ended = ended
        self._line_answered = answered
        self._runs: dict[str, Run] = {}
        self._speeds: defaultdict[str, Speed] = defaultdict(Speed)
        self._turns = asyncio.Semaphore(settings.max_batches)
        self._slots = asyncio.Semaphore(settings.max_in_flight)
        self._watch: asyncio.Task[None] | None = None
        self._swept = 0.0
        self._stopping = False
        private_files.make_folder(folder)

    def start(self) -> None:
        """Go on with batches that another server, or an earlier run of this one, has left."""
        self._watch = asyncio.create_task(self._look_after(), context=Context())

    async def stop(self, grace_s: float, hurry: asyncio.Event | None = None) -> None:
        """Leave all batches as they are, so that a server can go on with them. Lines under way have
        `grace_s` seconds, or until `hurry` is set.
        """
        self._stopping = True
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.wait([self._watch])
        runs = list(self._runs.values())
        for run in runs:
            run.drain()
        ended = asyncio.gather(*(run.task for run in runs), return_exceptions=True)
        waits: list[asyncio.Future[Any]] = [ended]
        if hurry is not None:
            waits.append(asyncio.ensure_future(hurry.wait()))
        limit = min(grace_s, DRAIN_S)
        await asyncio.wait(waits, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
        for task in [*waits[1:], *(run.task for run in runs)]:
            task.cancel()
        await ended
        with contextlib.suppress(PenstockError):
            await self._batches.release([run.batch.id for run in runs])

    def submit(self, batch: Batch) -> None:
        """Run a batch whose lease this server holds."""
        if batch.id not in self._runs and not self._stopping:
            run = self._runs[batch.id] = Run(batch, self._turns)
            # A context of its own: the batch must not have that of the request, such as its id.
            run.task = asyncio.create_task(self._see_through(run), context=Context())

    def cancel(self, id: str) -> None:
        """End a batch that has been cancelled, if it runs here."""
        if (run := self._runs.get(id)) is not None:
            run.cancel()

    def pause(self, id: str, *, paused: bool) -> None:
        """Pause or resume a batch, if it runs here."""
        if (run := self._runs.get(id)) is not None:
            run.pause(paused)

    # The life of a batch
    async def _see_through(self, run: Run) -> None:
        """Run a batch when it has its turn, or at once if it was cancelled or has expired."""
        loop = asyncio.get_running_loop()
        late = loop.call_later(max(run.batch.expires_at - time.time(), 0.0), run.expire)
        try:
            while True:
                run.want_turn()
                await run.turn()
                if await self._try(run):
                    break
                run.leave_turn()
                await asyncio.sleep(AGAIN_S)
        finally:
            late.cancel()
            run.leave_turn()
            del self._runs[run.batch.id]

    async def _try(self, run: Run) -> bool:
        """Run a batch. Returns False if it is to be tried again."""
        try:
            try:
                await self._run_or_fail(run)
            except NotStoredError:
                await self._let_go(run)
        except _WAITS as error:
            _log.warning("batch %s waits: %s", run.batch.id, error)
            return False
        return True

    async def _let_go(self, run: Run) -> None:
        """Clean up after a batch that this server may run no more. If it has ended, this server
        stored that, and the database went away at the commit. Else the batch was deleted, or
        another server runs it.
        """
        id = run.batch.id
        mine = await self._batches.renew([id])
        if id in mine and mine[id].ended_at is not None:
            run.batch = mine[id]
            await self._clean_up(run)
        else:
            _log.info("batch %s was deleted, or another server runs it", id)

    async def _run_or_fail(self, run: Run) -> None:
        """Run a batch. If it fails, the answers that it has are kept."""
        try:
            await self._run(run)
        except NotStoredError:
            raise
        except Exception as error:
            full = is_full(error)
            unreadable = isinstance(error, JobVersionError)
            if run.over.is_set() and (unreadable or (full and run.ends_as == "cancelled")):
                await self._end_unread(run)  # so that a batch can be cancelled on a full disk
                return
            if isinstance(error, _WAITS):
                raise
            if full or is_passing(error):
                raise unavailable(error) from error
            fault = _fault_of(run, error)
            if not run.batch.counts.total or run.fault is not None:  # no answers, or failed again
                await self._fail(run, [run.fault or fault])
                return
            run.fail(fault)
            await self._run_or_fail(run)

    async def _run(self, run: Run) -> None:
        folder = self._folder / run.batch.id
        private_files.make_folder(folder)
        input = folder / "input.jsonl"
        if not input.exists() and not await self._fetched(run, input):
            return
        if not run.batch.counts.total and not await self._validated(run, input):
            return
        counts = await self._answer_lines(run, folder, input)
        if counts is not None:
            await self._finish(run, folder, counts)

    async def _fetched(self, run: Run, input: Path) -> bool:
        """Fetch the input. Returns False if it cannot be had: the batch has ended then."""
        id = run.batch.input_file_id
        try:
            await self._files.get(None, id)
            await self._files.content.fetch(id, input)
            return True
        except NotStoredError:
            if not run.over.is_set():
                message = f"the input file '{id}' was deleted, or expired, before the batch's turn"
                fault = Fault(code="file_not_found", message=message, param="input_file_id")
                await self._fail(run, [fault])
                return False
        except UnavailableError:
            if not run.over.is_set():
                raise
        await self._end_unread(run)
        return False

    async def _validated(self, run: Run, input: Path) -> bool:
        batch = run.batch
        checked = await asyncio.to_thread(
            check_input,
            input,
            batch.endpoint,
            max_lines=self._settings.max_lines,
            max_line_bytes=self._http.limits.max_body_bytes,
            one_model=batch.api == "openai",
        )
        if faults := checked.faults or await self._not_to_be_kept(run, checked):
            await self._fail(run, faults)
            return False

        def begin(batch: Batch) -> Batch:
            status = "in_progress" if batch.status == "validating" else batch.status
            return replace(
                batch,
                status=status,
                in_progress_at=int(time.time()),
                model=checked.model,
                counts=Tally(total=checked.lines),
            )

        run.batch = await self._batches.change(batch.id, begin)
        return True

    async def _not_to_be_kept(self, run: Run, checked: Checked) -> list[Fault]:
        """The faults of a batch that cannot be answered in its window. Anthropic's have no
        window.
        """
        if run.batch.api != "openai" or run.over.is_set():
            return []
        try:
            await self._models.find(checked.model)
        except PenstockError as error:
            return [Fault(code=error.kind, message=str(error), line=1, param="body.model")]
        ahead = sum(
            other.batch.counts.total - (other.counts.rows if other.counts is not None else 0)
            for other in self._runs.values()
            if other is not run and other.batch.model == checked.model
        )
        seconds = self._speeds[checked.model].seconds_for(checked.lines + ahead)
        return too_late(checked.lines, ahead, seconds, run.batch.expires_at - time.time())

    async def _answer_lines(self, run: Run, folder: Path, input: Path) -> Counts | None:
        """Answer the lines. Returns None if the server stops before the end."""
        batch = run.batch
        form = ServedLines(
            model="", created=batch.created_at, limit=limited(self._http), unique=True
        )
        step = ServedStep(
            form,
            self._models,
            batch.model,
            self._slots,
            self._settings.max_in_flight,
            self._line_answered,
        )
        run.begin(step)
        source = await open_source(str(input))
        plan = Plan(
            source=source,
            form=form,
            step=step,
            output=Output(str(folder / "output.jsonl"), str(folder / "errors.jsonl")),
            identity={**(source.fingerprint or {}), "batch": batch.id},
            progress=False,
            watch=partial(setattr, run, "counts"),
            most_rows=MOST_ROWS,
            steered=False,  # a batch is steered by its routes
        )
        told = asyncio.create_task(self._tell_progress(run))
        self._speeds[batch.model].begin(run)
        try:
            with run.interrupts:
                result = await execute(plan, run.interrupts)
        finally:
            self._speeds[batch.model].end(run)
            told.cancel()
            await asyncio.wait([told])
        return None if result.stopped_by is not None else result.counts

    async def _finish(self, run: Run, folder: Path, counts: Counts) -> None:
        """Store the output files of a batch, and end it."""

        def finalizing(batch: Batch) -> Batch:
            status = batch.status if batch.status == "cancelling" else "finalizing"
            return replace(batch, status=status, finalizing_at=int(time.time()))

        batch = run.batch = await self._batches.change(run.batch.id, finalizing)
        made: dict[str, str] = {}
        for which, name in (("output", "output.jsonl"), ("error", "errors.jsonl")):
            path = folder / name
            if path.stat().st_size:
                file = await self._files.add(
                    path,
                    owner=batch.owner,
                    purpose="batch_output",
                    filename=f"{batch.id}_{which}.jsonl",
                    expires_in=batch.output_expires_in,
                    id=f"file-{batch.id.removeprefix('batch_').removeprefix('msgbatch_')}-{which}",
                )
                made[f"{which}_file_id"] = file.id
        usage = await asyncio.to_thread(output_usage, folder / "output.jsonl")
        tally = tally_of(counts, batch.counts.total)

        def end(batch: Batch) -> Batch:
            status = "completed"
            if run.fault is not None:
                status = "failed"
            elif tally.expired:
                status = "expired"
            elif batch.status == "cancelling":
                status = "cancelled"
            return replace(
                batch,
                status=status,
                counts=tally,
                usage=usage,
                errors=[] if run.fault is None else [run.fault],
                **made,
                **{f"{status}_at": int(time.time())},
            )

        await self._end(run, end)

    async def _fail(self, run: Run, faults: list[Fault]) -> None:
        now = int(time.time())
        await self._end(run, partial(replace, status="failed", failed_at=now, errors=faults))

    async def _end_unread(self, run: Run) -> None:
        """End a batch that is over although its input cannot be read, or its answers not
        written.
        """

        def end(batch: Batch) -> Batch:
            total, now = batch.counts.total, int(time.time())
            counts = Tally(total=total, **{run.ends_as: total})
            return replace(batch, status=run.ends_as, counts=counts, **{f"{run.ends_as}_at": now})

        await self._end(run, end)

    async def _end(self, run: Run, change: Callable[[Batch], Batch]) -> None:
        run.batch = await self._batches.change(run.batch.id, change)
        await self._clean_up(run)

    async def _clean_up(self, run: Run) -> None:
        await asyncio.to_thread(shutil.rmtree, self._folder / run.batch.id, ignore_errors=True)
        await self._ended(run.batch)

    # Beside the batches
    async def _tell_progress(self, run: Run) -> None:
        while True:
            await asyncio.sleep(PROGRESS_S)
            if run.counts is None:
                continue
            tally = tally_of(run.counts, run.batch.counts.total)
            if tally != run.batch.counts:
                with contextlib.suppress(PenstockError):
                    run.batch = await self._batches.change(
                        run.batch.id, partial(replace, counts=tally)
                    )

    async def _look_after(self) -> None:
        """Renew leases, take over batches of servers that are gone, and delete what has expired."""
        while True:
            try:
                runs = dict(self._runs)  # a copy: batches may be submitted meanwhile
                mine = await self._batches.renew(list(runs))
                for id, run in runs.items():
                    if id not in mine:
                        run.task.cancel()  # it was deleted, or another server has it
                    elif mine[id].status == "cancelling":
                        run.cancel()
                    else:
                        run.pause(mine[id].paused)
                await self._take_over()
                await self._sweep()
            except PenstockError as error:
                _log.warning("batches: %s", error)
            except Exception as error:
                _log.error("batches", exc_info=error)
            await asyncio.sleep(self._settings.lease_s / 3)

    async def _take_over(self) -> None:
        """Run batches that no server runs, if their model is here or they need no model."""
        for id, model in await self._batches.free(self._runs):
            if model:
                try:
                    await self._models.find(model)
                except PenstockError:
                    continue
            if (batch := await self._batches.claim(id)) is not None:
                self.submit(batch)

    async def _sweep(self) -> None:
        if time.monotonic() - self._swept < SWEEP_S and self._swept:
            return
        self._swept = time.monotonic()
        await self._files.sweep()
        await self._uploads.sweep()
        await self._sweep_folder()
        for batch in await self._batches.sweep(self._settings.ttl_s):
            if batch.api == "anthropic":  # its API has no files, so its clients cannot delete them
                ids = (batch.input_file_id, batch.output_file_id, batch.error_file_id)
                await self._files.remove([id for id in ids if id])

    async def _sweep_folder(self) -> None:
        """Delete the folders of batches that ended or were deleted on another server."""
        left = await asyncio.to_thread(left_over, self._folder)
        if left:
            running = await self._batches.running()
            for path in left:
                if path.name not in running:
                    await asyncio.to_thread(shutil.rmtree, path, ignore_errors=True)


def tally_of(counts: Counts, total: int) -> Tally:
    """What became of the lines so far."""
    unanswered = {kind: counts.errors.get(kind, 0) for kind in UNANSWERED}
    return Tally(
        total=total,
        completed=counts.ok,
        failed=counts.failed - sum(unanswered.values()),
        cancelled=unanswered[BatchCancelledError.kind],
        expired=unanswered[BatchExpiredError.kind],
    )


def _fault_of(run: Run, error: Exception) -> Fault:
    """The fault for an error that ended a batch. An unforeseen error is logged."""
    if isinstance(error, PenstockError):
        return Fault(code=error.kind, message=str(error))
    _log.error("batch %s failed", run.batch.id, exc_info=error)
    return Fault(code="internal_error", message=class_and_text(error))
