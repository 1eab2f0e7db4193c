"""Between an engine that produces tokens and a caller who takes them at a pace of its own.

`Coalescer` applies an interval: the first delta of an answer leaves at once, a later one an
interval after the last that left. The deltas that have come by then leave as one. `DeltaStream` is
one request's stream, which can be held and aborted. With an interval it reads ahead of the caller;
without one, each batch passes in the caller's own task.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, aclosing, contextmanager
from typing import Any

from penstock.engines.side_by_side import end_all
from penstock.engines.tasks import Batches
from penstock.types import Delta, TokenLogprob, Usage


class Coalescer:
    """Deltas that the caller has not taken yet, by answer. Times are in seconds."""

    def __init__(self, interval_s: float) -> None:
        self.interval_s = interval_s
        self._held: dict[int, list[Delta]] = {}
        self._last_left: dict[int, float] = {}

    def add(self, delta: Delta) -> None:
        held = self._held.get(delta.index)
        if held is None:
            self._held[delta.index] = [delta]
        else:
            held.append(delta)

    def wait_s(self, now: float) -> float | None:
        """Seconds until a delta may leave; 0: now; None: there is no delta."""
        if not self._held:
            return None
        return max(0.0, min(self._due(index) for index in self._held) - now)

    def take(self, now: float, *, everything: bool = False) -> list[Delta]:
        """The deltas that may leave, one per answer; with `everything` all, whatever the
        interval.
        """
        leaving = [index for index in self._held if everything or self._due(index) <= now]
        self._last_left.update(dict.fromkeys(leaving, now))
        return [joined(self._held.pop(index)) for index in leaving]

    def _due(self, index: int) -> float:
        if self._held[index][-1].finish_reason is not None:  # no further delta can join it
            return float("-inf")
        return self._last_left.get(index, float("-inf")) + self.interval_s


def joined(deltas: list[Delta]) -> Delta:
    """Successive deltas of one answer as one."""
    last = deltas[-1]
    if len(deltas) == 1:
        return last
    logprobs: tuple[TokenLogprob, ...] | None = None
    if any(delta.logprobs is not None for delta in deltas):
        logprobs = tuple(token for delta in deltas for token in delta.logprobs or ())
    return Delta(
        last.index,
        "".join(delta.text for delta in deltas),
        tuple(token for delta in deltas for token in delta.token_ids),
        logprobs,
        last.finish_reason,
        next((delta.usage for delta in reversed(deltas) if delta.usage is not None), None),
        tuple(part for delta in deltas for part in delta.tool_calls),
        stop=last.stop,
        chunks=tuple(chunk for delta in deltas for chunk in delta.chunks),
        reasoning="".join(delta.reasoning for delta in deltas),
        kv_transfer_params=last.kv_transfer_params,
        prompt_logprobs=deltas[0].prompt_logprobs,
        stop_token=last.stop_token,
        prompt_token_ids=deltas[0].prompt_token_ids,
    )


class DeltaStream:
    """One request's deltas on their way to its caller. `answers` is how many it asks for."""

    def __init__(
        self, *, interval_s: float = 0.0, answers: int = 1, clock: Callable[[], float] | None = None
    ) -> None:
        self._interval_s = interval_s
        self._clock = clock
        self._tokens = dict.fromkeys(range(answers), 0)
        """The tokens that have come, for each answer that has not finished."""
        self._ended = asyncio.Event()
        self._aborted = False
        self._error: Exception | None = None
        self._held = False
        self._news = asyncio.Event()
        self._reader: asyncio.Task[Any] | None = None
        """The task that waits for the source now, if one does."""
        self._interrupted: asyncio.Task[Any] | None = None

    def abort(self) -> None:
        """End the request: its unfinished answers get the finish reason "abort"."""
        if self._aborted:
            return
        self._aborted = True
        self._held = False
        if self._reader is not None:
            self._interrupted = self._reader
            self._reader.cancel()  # `_reading` takes it back
        self._news.set()

    def hold(self) -> None:
        """Deliver nothing until `release`. Deltas that come meanwhile are kept."""
        self._held = True

    def release(self) -> None:
        self._held = False
        self._news.set()

    async def read_out(self) -> None:
        """Return when the source has ended, whether or not its deltas were taken."""
        await self._ended.wait()

    def batches(self, opening: AbstractAsyncContextManager[Batches]) -> Batches:
        """The deltas of the source that `opening` gives, in lists that may leave at once.
        Closing it early closes the source, and waits for that.
        """
        return self._joined(opening) if self._interval_s else self._handed_on(opening)

    async def _handed_on(self, opening: AbstractAsyncContextManager[Batches]) -> Batches:
        """Each batch as it comes, in the caller's own task. A task that reads ahead would cost a
        task switch at every step.
        """
        loop = asyncio.get_running_loop()
        kept: list[Delta] = []
        async with opening as source:
            with self._reading():
                while not self._aborted:
                    self._reader = asyncio.current_task(loop)
                    batch = await anext(source)
                    self._reader = None
                    self._count(batch)
                    kept = kept + batch if kept else batch
                    if not self._held:
                        yield kept
                        kept = []
            await source.aclose()
            while self._held:
                await self._wait(None)
            if kept:
                yield kept
            if rest := self._rest():
                yield rest

    async def _joined(self, opening: AbstractAsyncContextManager[Batches]) -> Batches:
        """Deltas joined by the interval. A task reads them ahead of the caller."""
        buffer = Coalescer(self._interval_s)
        clock = self._clock or asyncio.get_running_loop().time
        async with opening as source:
            ahead = asyncio.create_task(self._read_ahead(source, buffer))
            try:
                while self._held or not self._ended.is_set():
                    wait = None if self._held else buffer.wait_s(clock())
                    if wait == 0:
                        yield buffer.take(clock())
                    else:
                        await self._wait(wait)
            finally:
                await end_all([ahead])
            if rest := buffer.take(clock(), everything=True):
                yield rest
            if rest := self._rest():
                yield rest

    async def _read_ahead(self, source: Batches, buffer: Coalescer) -> None:
        async with aclosing(source):
            with self._reading():
                self._reader = asyncio.current_task()
                while not self._aborted:
                    batch = await anext(source)
                    self._count(batch)
                    for delta in batch:
                        buffer.add(delta)
                    self._news.set()
        self._news.set()

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Until the source ends, fails or is aborted."""
        try:
            yield
        except StopAsyncIteration:
            pass
        except asyncio.CancelledError:
            if self._interrupted is None or self._interrupted.uncancel():
                raise  # the task was cancelled, and not only by `abort`
        except Exception as error:
            self._error = error
        finally:
            self._reader = None
            self._ended.set()

    def _count(self, batch: list[Delta]) -> None:
        tokens = self._tokens
        for delta in batch:
            if delta.finish_reason is not None:
                tokens.pop(delta.index, None)
            elif delta.index in tokens:
                tokens[delta.index] += len(delta.token_ids)

    def _rest(self) -> list[Delta]:
        """The deltas that are still due when the source has ended."""
        if self._error is not None:
            raise self._error
        if not self._aborted:
            return []
        return [
            Delta(index, finish_reason="abort", usage=Usage(completion_tokens=tokens))
            for index, tokens in self._tokens.items()
        ]

    async def _wait(self, seconds: float | None) -> None:
        """Wait until something happens, for at most this many seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._news.wait()
        self._news.clear()
