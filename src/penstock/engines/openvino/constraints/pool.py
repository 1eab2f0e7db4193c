"""Tries constraints in expendable worker processes before the engine sees them.

A constraint can take minutes and gigabytes to compile, so a worker process with limits compiles it
first. The pool caches the outcome: a grammar, or the reason for a refusal. It replaces a process
that a constraint killed, and a process whose constraint nobody waits for any more.

The processes run at idle priority, and in short turns while requests are served (`throttle.py`). A
busy machine could starve them. The pool replaces a starved process by one with a higher priority,
and starts further processes like that for the next minute.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
from collections import OrderedDict, deque
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path

from penstock.engines.openvino.constraints.throttle import Allowance, Throttle
from penstock.engines.openvino.options import LoadTokenizer
from penstock.engines.process import (
    Call,
    EngineProcess,
    Failed,
    Ready,
    Reply,
    decode_to_parent,
    encode,
)
from penstock.engines.side_by_side import begin
from penstock.errors import OverloadedError, PenstockError, RequestError, by_kind
from penstock.types import StructuredOutput

WORKER = "penstock.engines.openvino.constraints.worker"
PROCESSES = 2
SECONDS = 2
"""Processor time that one constraint may use."""
PATIENCE_SECONDS = 30.0
"""Wall-clock time that one constraint may take, most of it waiting for a processor."""
STARVED_SECONDS = 2.0
"""A process starves if it had less than `_FAIR_SHARE` of a processor for this many seconds."""
_FAIR_SHARE = 0.1
_NICE, _NICE_IF_STARVED = 19, 5
_HURRY_SECONDS = 60.0
"""For so long after a process starved, new processes start with the higher priority."""
MEMORY_BYTES = 1 << 30
QUEUE = 64
IDLE_SECONDS = 300.0
"""An idle process ends after so long."""
ABANDONED_SECONDS = 0.5
"""An abandoned constraint may run for so much longer, without its pauses: replacing a process costs
more than most constraints.
"""
_REMEMBERED = 1_000
_REMEMBERED_CHARS = 32 << 20

_TOO_BUSY = f"the machine was too busy for it for {PATIENCE_SECONDS:g} s"

_log = logging.getLogger(__name__)
Outcome = str | PenstockError


class _Trial:
    """One constraint, queued or in a process. `waiting` counts requests that wait for it."""

    def __init__(self, structured: StructuredOutput, key: bytes) -> None:
        self.structured = structured
        self.key = key
        self.outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self.waiting = 0
        self.tries = 0


class _Process:
    """One worker process, which tries one constraint at a time."""

    def __init__(self, pool: Constraints) -> None:
        self._pool = pool
        self._process = EngineProcess(WORKER, self._on_message, self._on_death)
        self._timer: asyncio.TimerHandle | None = None
        self._why: str | None = None
        self._throttle = Throttle(lambda: self._process.pid, pool.serving)
        self._yields = asyncio.get_running_loop().time() >= pool.hurried_until
        self._worked = self._ran = self._at_once = 0.0
        self._starvation: asyncio.TimerHandle | None = None
        self.starved = False
        self.ready = False
        self.trial: _Trial | None = None
        self.ended = False

    async def start(self, load: LoadTokenizer) -> None:
        await self._process.start()
        if (pid := self._process.pid) is not None:
            give_way(pid, to_all=self._yields)
        self._throttle.begin(0.0, hurry=True)
        self._process.send(encode(load))
        self._after(PATIENCE_SECONDS, _TOO_BUSY)
        self._watch()

    def take(self, trial: _Trial) -> None:
        self.trial = trial
        trial.tries += 1
        structured = trial.structured
        self._process.send(
            encode(
                Call(
                    1,
                    "prove",
                    [
                        structured.kind,
                        structured.spec,
                        structured.checked,
                        structured.after,
                        structured.openers,
                        structured.triggers,
                    ],
                )
            )
        )
        self._after(PATIENCE_SECONDS, _TOO_BUSY)
        self._at_once = self._pool.at_once()
        self._throttle.begin(self._at_once, hurry=not self._yields)
        self._watch()

    def abandon(self) -> None:
        """Give the trial up soon: no request waits for it any more."""
        self._after_running(self._throttle.ran + ABANDONED_SECONDS, "nobody waited for it")

    async def stop(self) -> None:
        self._cancel()
        self._throttle.end()
        self.ended = True
        await self._process.stop()

    def _after(self, seconds: float, why: str) -> None:
        self._cancel()
        self._timer = asyncio.get_running_loop().call_later(seconds, self._kill, why)

    def _after_running(self, seconds: float, why: str) -> None:
        """End the process once it has run for `seconds`, pauses not counted."""
        self._cancel()
        left = seconds - self._throttle.ran
        if left > 0:
            self._timer = asyncio.get_running_loop().call_later(
                left, self._after_running, seconds, why
            )
        else:
            self._kill(why)

    def _cancel(self) -> None:
        for timer in (self._timer, self._starvation):
            if timer is not None:
                timer.cancel()

    def _watch(self) -> None:
        """Check after a while that a process at idle priority is not starved."""
        if self._yields:
            self._worked, self._ran = processor_seconds(self._process.pid), self._throttle.ran
            self._starvation = asyncio.get_running_loop().call_later(
                STARVED_SECONDS, self._check_share
            )

    def _check_share(self) -> None:
        if processor_seconds(self._process.pid) - self._worked < _FAIR_SHARE * (
            self._throttle.ran - self._ran
        ):
            self._replace()
        elif self.trial is not None or not self.ready:
            self._watch()

    def _replace(self) -> None:
        """Replace this starved process at once: it may take long to end."""
        self._cancel()
        self._throttle.end()
        self.starved = self.ended = True
        self._process.kill()
        trial, self.trial = self.trial, None
        self._pool.hurry()
        if trial is not None:
            self._pool.try_again(trial)
        self._pool.forget(self)

    def _kill(self, why: str) -> None:
        self._why = why
        self._process.kill()

    def _on_message(self, data: bytes) -> None:
        if self.starved:
            return  # another process has the trial by now
        message = decode_to_parent(data)
        self._cancel()
        if self.ready:
            self._pool.used(min(self._throttle.ran, self._at_once))
        self._throttle.end()
        trial, self.trial = self.trial, None
        match message:
            case Ready():
                self.ready = True
            case Reply(value=grammar) if trial is not None:
                self._pool.settle(trial, str(grammar))
            case Failed(kind=kind, message=why, param=param) if trial is not None:
                self._pool.settle(trial, by_kind(kind, why, param))
            case Failed(message=why):
                self._why = why
                self._pool.give_up(why)
        self._after(IDLE_SECONDS, "it was idle")
        self._pool.dispatch()

    def _on_death(self, why: str) -> None:
        if self.starved:
            return
        self._cancel()
        self._throttle.end()
        self.ended = True
        if (
            self.trial is not None
            and self._why is None
            and "SIGKILL" in why
            and self.trial.tries == 1
        ):
            self._pool.try_again(self.trial)  # the kill may have been meant for another
        elif self.trial is not None:
            self._pool.settle(self.trial, _refusal(why, self._why), remember=self._why is None)
        elif not self.ready:
            self._pool.give_up(self._why or why)
        self._pool.forget(self)


def give_way(pid: int, to_all: bool) -> None:
    """Give a process idle priority (`to_all`), or, if that starved it, a low one."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, pid, _NICE if to_all else _NICE_IF_STARVED)
        if to_all and hasattr(os, "SCHED_IDLE"):
            os.sched_setscheduler(pid, os.SCHED_IDLE, os.sched_param(0))


def processor_seconds(pid: int | None) -> float:
    """Processor seconds that a process has used; infinite if they cannot be read."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return math.inf
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _refusal(why: str, killed_because: str | None) -> PenstockError:
    # A process that got its processor time would have ended at the limit.
    if killed_because == _TOO_BUSY:
        return OverloadedError(f"a constraint could not be compiled: {_TOO_BUSY}; try again")
    if killed_because is None and "SIGPROF" in why:
        killed_because = f"it takes more than {SECONDS} s of processor time to compile"
    elif killed_because is None:
        killed_because = f"it takes more than {MEMORY_BYTES >> 30} GiB of memory to compile"
    return RequestError(
        f"the constraint is too large: {killed_because}; make it simpler: fewer alternatives,"
        " smaller counts",
        param="response_format",
    )


class Constraints:
    """Turns constraints into grammars, in a pool of worker processes.

    `tokenizer` is the model's directory or GGUF file; `serving` returns whether the engine has
    running requests.
    """

    def __init__(self, tokenizer: str, serving: Callable[[], bool] = lambda: False) -> None:
        self.serving = serving
        self._load = LoadTokenizer(tokenizer, SECONDS, MEMORY_BYTES)
        self._known: OrderedDict[bytes, Outcome] = OrderedDict()
        self._known_chars = 0
        self._trials: dict[bytes, _Trial] = {}
        self._queue: deque[_Trial] = deque()
        self._processes: list[_Process] = []
        self._starting: set[asyncio.Task[None]] = set()
        self._ending: set[asyncio.Task[None]] = set()
        self.hurried_until = 0.0
        """Until then, new processes start with the higher priority."""
        self._allowance = Allowance()

    def hurry(self) -> None:
        """Start processes with the higher priority for a while, as one was starved."""
        self.hurried_until = asyncio.get_running_loop().time() + _HURRY_SECONDS

    def at_once(self) -> float:
        """Seconds for which a constraint may be tried without a pause."""
        return max(self._allowance.left(asyncio.get_running_loop().time()), 0.0)

    def used(self, seconds: float) -> None:
        """Take `seconds` off the allowance, if requests are being served."""
        if self.serving():
            self._allowance.use(seconds, asyncio.get_running_loop().time())

    async def grammar(self, structured: StructuredOutput) -> StructuredOutput:
        """The grammar of a constraint. Raises `RequestError` for a damaged or too large one,
        `OverloadedError` if it cannot be compiled now.
        """
        about = (structured.kind, structured.checked, structured.after, structured.openers)
        spec = f"{about} {structured.triggers} {structured.spec}"
        key = blake2b(spec.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        outcome = self._known.get(key)
        if outcome is None:
            outcome = await self._tried(structured, key)
        else:
            self._known.move_to_end(key)
        if isinstance(outcome, OverloadedError):
            raise OverloadedError(str(outcome))
        if isinstance(outcome, PenstockError):
            raise RequestError(str(outcome), param=structured.param)
        return StructuredOutput("grammar", outcome)

    async def stop(self) -> None:
        """End all processes, and fail the trials that wait."""
        for task in list(self._starting):
            task.cancel()
        self.give_up("the engine stops")
        processes, self._processes = self._processes, []
        await asyncio.gather(*self._ending, *(process.stop() for process in processes))

    async def _tried(self, structured: StructuredOutput, key: bytes) -> Outcome:
        trial = self._trials.get(key)
        if trial is None:
            if len(self._queue) >= QUEUE:
                raise OverloadedError(f"{QUEUE} new constraints wait to be compiled; try again")
            trial = self._trials[key] = _Trial(structured, key)
            self._queue.append(trial)
            self.dispatch()
        trial.waiting += 1
        try:
            return await asyncio.shield(trial.outcome)
        finally:
            trial.waiting -= 1
            if not trial.waiting and not trial.outcome.done():
                self._abandon(trial)

    def _abandon(self, trial: _Trial) -> None:
        self._trials.pop(trial.key, None)
        if trial in self._queue:
            self._queue.remove(trial)
        for process in self._processes:
            if process.trial is trial:
                process.abandon()

    def dispatch(self) -> None:
        """Hand queued trials to idle processes; start another process if all are busy."""
        for process in self._processes:
            if not self._queue:
                return
            if process.ready and process.trial is None and not process.ended:
                process.take(self._queue.popleft())
        if (
            len(self._queue) > sum(not process.ready for process in self._processes)
            and len(self._processes) < PROCESSES
        ):
            process = _Process(self)
            self._processes.append(process)
            begin(self._start(process), self._starting)

    async def _start(self, process: _Process) -> None:
        try:
            await process.start(self._load)
        except OSError as error:
            self.forget(process)
            self.give_up(str(error))

    def try_again(self, trial: _Trial) -> None:
        """Queue a trial again whose process ended for another reason."""
        if trial.waiting:
            self._queue.appendleft(trial)

    def settle(self, trial: _Trial, outcome: Outcome, remember: bool = True) -> None:
        """Resolve a trial, and cache its outcome if `remember`."""
        if self._trials.get(trial.key) is trial:
            del self._trials[trial.key]
        if remember:
            self._remember(trial.key, outcome)
        if not trial.outcome.done():
            trial.outcome.set_result(outcome)

    def give_up(self, why: str) -> None:
        """Fail all trials with `OverloadedError`, as no process can be had."""
        if self._trials:
            _log.error("constraints cannot be compiled: %s", why)
        for trial in list(self._trials.values()):
            self.settle(
                trial,
                OverloadedError(f"constraints cannot be compiled for now: {why}"),
                remember=False,
            )
        self._queue.clear()

    def forget(self, process: _Process) -> None:
        """Remove a process that ended or was killed. Reaping it may take a while."""
        if process in self._processes:
            self._processes.remove(process)
            begin(process.stop(), self._ending)
            self.dispatch()

    def _remember(self, key: bytes, outcome: Outcome) -> None:
        self._known[key] = outcome
        self._known_chars += len(str(outcome))
        while len(self._known) > _REMEMBERED or self._known_chars > _REMEMBERED_CHARS:
            self._known_chars -= len(str(self._known.popitem(last=False)[1]))
