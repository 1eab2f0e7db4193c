"""Moves the rows of a job: from the source into the engine, and on to the sink, each row on its
own.

    read_ahead ──> filling ──> window ──> in flight ──> sink
                   prepared    sorted     asked         journaled, in order, written

`_take_in` reads ahead and gathers prepared rows in `filling`. When the window has run out, what has
gathered becomes the next window, sorted so that equal prefixes are neighbours. `_admit` keeps the
engine full from the window.

Everything is bounded. The window's size bounds `filling`; it doubles from a small start, so that
the first rows begin at once. While rows are under way, a new window waits for `MAX_ROWS` rows and
`MAX_BYTES` bytes of those that were read and not yet written, and reading for twice as many rows.
A row of an opened window does not wait for them, as it may be the row that the ordered output is
waiting for; it waits only while the sink is busy writing.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from penstock.batch.job.result import Counts
from penstock.batch.pipeline.offload import ends_task
from penstock.batch.pipeline.pipeline import ROW_LIMIT, Pipeline
from penstock.batch.read.sources import read_ahead
from penstock.batch.rows.dedupe import AnswerCache
from penstock.batch.rows.intake import (
    FIRST_WINDOW,
    LARGEST_WINDOW,
    Replay,
    add_row,
    by_length,
    in_order,
    other_requests,
    other_rows,
    prepare,
)
from penstock.batch.rows.row import Outcome, Row
from penstock.batch.write.journal import Journal, digest_key
from penstock.batch.write.kept import Kept
from penstock.batch.write.manifest import StreamSum
from penstock.batch.write.parts import RowSet
from penstock.batch.write.sinks import Sink
from penstock.engines.side_by_side import end_all
from penstock.errors import (
    EngineTimeoutError,
    JobError,
    JobLimitError,
    PenstockError,
    class_and_text,
)
from penstock.garbage import collected_seldom

if TYPE_CHECKING:
    from penstock.batch.cache.shared import SharedCache
    from penstock.batch.job.plan import Plan
    from penstock.batch.report import Observer

MAX_ROWS = 16384
MAX_BYTES = 64 << 20
DRAIN_SECONDS = 15.0
_LATEST = 16
_TURN = 512  # answers from memory before the event loop gets its turn


class Flow:
    """One run of a job's rows. Make it inside a running event loop; `await run()` once.

    `journal` is None if results are not kept. `answers` are those of this job, `kept` those of its
    earlier input, `cache` those that jobs share. `stream` is a checksum of the rows read from a
    source without fingerprint, by which a complete job knows the same rows again. `on_quiet` is
    called when no row is worked on. `latest` has the rows that finished last, each with its number
    in order of finishing, its number in the input, and its outcome.
    """

    def __init__(
        self,
        plan: Plan,
        pipeline: Pipeline,
        sink: Sink,
        counts: Counts,
        answers: AnswerCache,
        journal: Journal | None = None,
        kept: Kept | None = None,
        cache: SharedCache | None = None,
        observer: Observer | None = None,
    ) -> None:
        self._plan = plan
        self._form = plan.form
        self._pipeline = pipeline
        self._sink = sink
        sink.fail = self.stop
        sink.on_room = self._admit
        self._counts = counts
        self._answers = answers
        self._journal = journal
        self._keys = plan.extras.keys
        self._kept = kept
        self._cache = cache
        self._observer = observer
        self.latest: deque[tuple[int, int, Outcome]] = deque(maxlen=_LATEST)
        self._paused = False
        self._reached: JobLimitError | None = None
        self._has_limits = plan.limits.any

        self._filling: list[Row] = []
        self._filling_bytes = 0
        self._window: deque[Row] = deque()
        self._window_size = FIRST_WINDOW
        self._most_rows, self._largest_window = MAX_ROWS, LARGEST_WINDOW
        if plan.most_rows is not None:
            self._most_rows = plan.most_rows
            self._largest_window = max(FIRST_WINDOW, plan.most_rows // 4)
        self._tasks: set[asyncio.Task[None]] = set()
        self._concluding: set[asyncio.Task[None]] = set()  # of rows that were answered from memory
        # By digest, the rows that wait for an equal request in flight.
        self._followers: dict[bytes, list[Row]] = {}
        self._rows_inside = 0
        self._bytes_inside = 0
        self._answered: list[tuple[Row, Outcome, Outcome]] = []
        self._all_read = False
        self._preparing = False
        self.on_quiet: Callable[[], None] = lambda: None
        self.stream: StreamSum | None = None
        self._room = asyncio.Event()
        self._over = asyncio.Event()
        self._error: BaseException | None = None

    async def run(self) -> bool:
        """Move all rows. Returns False if the flow was drained before the end. Raises the error
        that stopped it.
        """
        with collected_seldom():
            intake = asyncio.create_task(self._take_in())
            alarm = None
            if (seconds := self._plan.limits.seconds) is not None:
                late = JobLimitError("the deadline is reached")
                if seconds <= 0:
                    self._end_early(late)
                alarm = asyncio.get_running_loop().call_later(seconds, self._end_early, late)
            try:
                await self._over.wait()
                if self._pipeline.ending and self._error is None:
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(DRAIN_SECONDS):
                            # Rows that end answer others, which are then concluded too.
                            while under_way := self._tasks | self._concluding:
                                await asyncio.wait(under_way)
            finally:
                if alarm is not None:
                    alarm.cancel()
                self._pipeline.end()
                await end_all([intake, *self._tasks, *self._concluding])
        if self._error is not None:
            raise self._error
        complete = self._all_read and not self._rows_inside
        if complete:  # only the limits on the whole job can still be exceeded
            self._reached = self._plan.limits.exceeded(self._counts, end=True)
        if self._reached is not None:
            done = (
                f"{self._counts.rows:,} rows are done and kept; the same command with a wider limit"
                " goes on"
            )
            raise JobLimitError(
                f"{self._reached}. {done}" if self._journal is not None else str(self._reached)
            )
        return complete

    def drain(self) -> None:
        """Admit no more rows; `run` returns when those in flight are finished, or after 15 s."""
        self._pipeline.end()
        self._over.set()

    def pause(self) -> None:
        """Admit no more rows until `go_on`; those in flight finish."""
        self._paused = True

    def go_on(self) -> None:
        """Admit rows again after `pause`."""
        self._paused = False
        self._admit()

    def _end_early(self, why: JobLimitError) -> None:
        if self._reached is None:
            self._reached = why
            self.drain()

    def stop(self, error: BaseException | None = None) -> None:
        """End at once. `run` raises `error`, as the cause of a `JobError` if it is not ours."""
        if self._error is None and error is not None:
            self._error = error
            if not isinstance(error, PenstockError):
                self._error = JobError(class_and_text(error))
                self._error.__cause__ = error
        self._pipeline.end()
        self._over.set()
        for task in self._tasks | self._concluding:
            task.cancel()

    # In
    async def _take_in(self) -> None:
        try:
            plan, journal = self._plan, self._journal
            done: RowSet | tuple[()] = journal.done if journal is not None else ()
            resumes = bool(done)
            replay = Replay(journal, plan.source)
            self.stream = (
                StreamSum(0, 0) if journal is not None and plan.source.fingerprint is None else None
            )
            again = self._form.every_row or replay.wanted or self.stream is not None
            start = 0 if again or journal is None else journal.done.first_missing()
            ahead = read_ahead(plan.source, start, plan.limit, plan.value_columns)
            async with contextlib.aclosing(ahead) as batches:
                async for batch in batches:
                    self._preparing = True
                    if self.stream is not None:
                        for row in batch:
                            add_row(self.stream, row)
                    needed = (
                        batch
                        if again or not resumes
                        else [row for row in batch if row.index not in done]
                    )
                    async for rows in self._form.ready(needed):
                        for row in rows:
                            if not resumes or row.index not in done:
                                self._receive(row)
                            else:
                                prepare(self._form, row)
                                replay.compare(row)
                        self._admit()
                        await asyncio.sleep(0)  # rows that fail, or are known, wait for nothing
                        while self._is_full():
                            self._room.clear()
                            await self._room.wait()
                    self._preparing = False
                    self._admit()
            replay.finish()
            self._all_read = True
            self._admit()
        except BaseException as error:
            if ends_task(error):
                raise
            self.stop(error)

    def _receive(self, row: Row) -> None:
        failure = prepare(self._form, row)
        self._rows_inside += 1
        self._bytes_inside += row.nbytes
        self._counts.blank += row.blank and failure is None
        if self._keys is not None:
            self._keys.mark(row)
        record = self._journal.pending.pop(row.index, None) if self._journal is not None else None
        if record is not None:
            if failure is None and record.key != digest_key(row.digest):
                streams = self._plan.source.fingerprint is None
                raise (other_rows if streams else other_requests)(row.index)
            self._counts.resumed += 1
            if row.shareable and record.outcome.error is None and not self._form.concludes:
                self._answers.put(row.digest, record.outcome)
            self._finish(row, record.outcome, journaled=True)
        elif failure is not None:
            self._finish(row, failure)
        elif (
            self._kept is not None
            and (known := self._kept.get(row.key, digest_key(row.digest))) is not None
        ):
            self._counts.kept += 1
            self._finish(row, known)
        else:
            self._filling.append(row)
            self._filling_bytes += row.nbytes

    def _is_full(self) -> bool:
        return (
            len(self._filling) >= self._window_size
            or self._filling_bytes >= MAX_BYTES // 2
            or (self._rows_inside >= 2 * self._most_rows and self._is_working())
            or self._sink.full
        )

    def _is_working(self) -> bool:
        return bool(self._tasks or self._concluding)

    # Through
    def _admit(self) -> None:
        """Start rows while the engine has room for them."""
        while (
            len(self._tasks) < self._pipeline.most_in_flight
            and (row := self._next_row()) is not None
        ):
            self._tasks.add(asyncio.create_task(self._work(row)))
        self._make_room()
        if not self._tasks and (not self._preparing or self._sink.full):
            self.on_quiet()
        if self._all_read and not self._rows_inside:
            self._over.set()

    def _next_row(self) -> Row | None:
        """The next row that the engine must answer; None if there is none now."""
        for _ in range(_TURN):
            if (
                self._pipeline.ending
                or self._paused
                or self._sink.full
                or not (self._window or self._open_window())
            ):
                return None
            row = self._window.popleft()
            if not (row.shareable and self._is_answered(row)):
                return row
        # After `_TURN` answers from memory the event loop gets its turn.
        asyncio.get_running_loop().call_soon(self._admit)
        return None

    def _make_room(self) -> None:
        if not self._room.is_set() and not self._is_full():
            self._room.set()

    def _is_answered(self, row: Row) -> bool:
        """Whether an equal request was answered, or is in flight and will answer this row too."""
        followers = self._followers.get(row.digest)
        if followers is not None:
            followers.append(row)
            return True
        try:
            known = self._answers.get(row.digest)
            if known is not None:
                self._counts.deduplicated += 1
            elif self._cache is not None and (known := self._cache.get(row)) is not None:
                self._counts.from_cache += 1
                self._answers.put(row.digest, known)
            else:
                self._followers[row.digest] = []
                return False
            self._conclude(row, known)
        except Exception as error:  # of any kind: else the row would never be finished
            self.stop(error)
        return True

    def _open_window(self) -> bool:
        if not self._filling:
            return False
        waiting = self._rows_inside - len(self._filling)
        if self._is_working() and (
            waiting >= self._most_rows or self._bytes_inside - self._filling_bytes >= MAX_BYTES
        ):
            return False
        arranged = by_length if self._form.by_length else in_order
        self._window.extend(arranged(self._filling))
        self._filling = []
        self._filling_bytes = 0
        self._window_size = min(2 * self._window_size, self._largest_window)
        self._room.set()
        return True

    async def _work(self, row: Row | None) -> None:
        """Answer rows one after another in one task: a task for each row would cost more."""
        task = asyncio.current_task()
        assert task is not None
        answer = self._pipeline.outcome if self._plan.row_timeout is None else self._answer_in_time
        form = self._form
        try:
            while row is not None:
                outcome = await answer(row)
                if outcome is not None:
                    if row.shareable and outcome.error is None:
                        # Before the user's function can change it.
                        self._answers.put(row.digest, outcome)
                        if self._cache is not None:
                            self._cache.put(row, outcome)
                    own = form.conclude(row, outcome) if form.concludes else outcome
                    if not isinstance(own, Outcome):
                        own = await own
                    if not self._answered:
                        asyncio.get_running_loop().call_soon(self._deliver)
                    self._answered.append((row, outcome, own))
                await asyncio.sleep(0)  # others' turn, and `_deliver` before this worker's next row
                row = self._next_row()
        except BaseException as error:
            if ends_task(error):
                raise
            self.stop(error)  # of any kind: else the row would never be finished
        finally:
            self._tasks.discard(task)
            self._admit()

    async def _answer_in_time(self, row: Row) -> Outcome | None:
        try:
            async with asyncio.timeout(self._plan.row_timeout) as limit:
                ROW_LIMIT.set(limit)
                return await self._pipeline.outcome(row)
        except TimeoutError:
            if not limit.expired():
                raise
            error = EngineTimeoutError(
                f"the row was not answered within {self._plan.row_timeout:g} s"
            )
            outcome = self._form.failure(row, error, "engine", 1)
            outcome.latency_ms = round(1000 * (self._plan.row_timeout or 0), 3)
            return outcome

    # Out
    def _deliver(self) -> None:
        """Finish the rows that were answered in this turn of the event loop, all together. One by
        one, between the requests of other rows, each would take longer: its code would have left
        the processor's caches.
        """
        answered, self._answered = self._answered, []
        for row, outcome, own in answered:
            try:
                self._share(row, outcome, own)
            except Exception as error:
                self.stop(error)
        self._make_room()

    def _share(self, row: Row, outcome: Outcome, own: Outcome) -> None:
        """Finish a computed row with its `own` outcome, and equal rows with the `outcome`."""
        usage = outcome.usage
        if usage is not None:
            self._counts.prompt_tokens += usage.prompt_tokens
            self._counts.completion_tokens += usage.completion_tokens
            self._counts.cached_tokens += usage.cached_tokens
        followers = self._followers.pop(row.digest) if row.shareable else []
        self._finish(row, own)
        for follower in followers:
            answer = outcome if outcome.error is not None else self._answers.get(row.digest)
            if answer is not None:
                self._counts.deduplicated += 1
                self._conclude(follower, answer)
            else:  # it is not kept, and the user's function may have changed it: ask again
                follower.shareable = False
                self._window.append(follower)
                self._admit()

    def _conclude(self, row: Row, outcome: Outcome) -> None:
        """Finish a row that was answered from memory."""
        concluded = self._form.conclude(row, outcome)
        if isinstance(concluded, Outcome):
            self._finish(row, concluded)
        else:
            task = asyncio.ensure_future(self._conclude_later(row, concluded))
            self._concluding.add(task)
            task.add_done_callback(self._concluded)

    async def _conclude_later(self, row: Row, concluded: Awaitable[Outcome]) -> None:
        try:
            self._finish(row, await concluded)
        except Exception as error:
            self.stop(error)

    def _concluded(self, task: asyncio.Task[None]) -> None:
        self._concluding.discard(task)
        self._admit()

    def _finish(self, row: Row, outcome: Outcome, *, journaled: bool = False) -> None:
        counts = self._counts
        error = outcome.error
        if error is not None:
            action = self._plan.policy.action(error.type)
            if action == "fail" and not journaled:
                raise JobError(
                    f"row {row.index} failed at stage {error.stage}: {error.message}"
                    + (
                        ". What was done before it is kept; the same command goes on with it"
                        if self._journal is not None
                        else ""
                    )
                )
            outcome.skipped = action == "skip"  # an earlier run may have had another policy
            counts.errors[error.type] = counts.errors.get(error.type, 0) + 1
        elif outcome.skipped:
            counts.left_out += 1
        counts.rows += 1
        self.latest.append((counts.rows, row.index, outcome))
        if self._observer is not None and not journaled:
            self._observer.note(row, outcome, counts)
        size = outcome.nbytes
        row.request = None  # answered: its memory is needed no more
        row.prefix = ""
        row.nbytes += size
        self._bytes_inside += size
        left = self._sink.put(row, outcome, journaled=journaled)
        self._rows_inside -= len(left)
        for gone in left:
            self._bytes_inside -= gone.nbytes
        if (
            self._has_limits
            and not journaled
            and (why := self._plan.limits.exceeded(counts)) is not None
        ):
            self._end_early(why)
