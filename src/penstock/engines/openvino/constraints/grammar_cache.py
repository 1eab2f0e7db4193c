"""What a pipeline has compiled: grammars, made ready by a thread while the pipeline steps.

The engine compiles a grammar in the step that uses it first and keeps it with the tokenizer,
without end. Here it is compiled beforehand, and after so many all are dropped: a grammar that is
used again is compiled again.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from penstock.engines.openvino.constraints.bare_pipeline import BarePipeline
from penstock.engines.openvino.constraints.throttle import Allowance

KEPT = 256
"""CompiledGrammars that are kept; 30 to 300 kB each."""


_SMALL = 2_000
"""Characters of a grammar that is never held back: it takes some milliseconds."""
_SERVING_SECONDS = 0.25
"""How long after their last requests the pipelines are taken to have some: others follow soon."""
_SHARE, _AT_ONCE_SECONDS = 0.01, 0.1
"""The part of the time, and the most of it at once, in which others are compiled while requests are
served: too little to be seen in one request of twenty.
"""


class CompiledGrammars:
    """Those of one tokenizer. `logits` tells the size of the model's logits, and is asked when it
    is needed.
    """

    def __init__(self, tokenizer: Any, logits: Callable[[], int]) -> None:
        self._tokenizer = tokenizer
        self._logits = logits
        self._ready: set[str] = set()
        self._pipeline: BarePipeline | None = None

    def ready(self, grammar: str) -> bool:
        """Whether a step may use it."""
        return grammar in self._ready

    def compile(self, grammar: str) -> None:
        """Make it ready. Raises what the engine raises."""
        if grammar in self._ready:
            return
        if self._pipeline is None:
            self._pipeline = BarePipeline(self._tokenizer, self._logits())
        self._pipeline.compile(grammar)
        self._ready.add(grammar)

    @property
    def many(self) -> bool:
        """Whether it is time to forget them."""
        return len(self._ready) >= KEPT

    def forget(self) -> None:
        """Forget all of them. Only where nothing is being compiled; requests under way keep
        theirs.
        """
        if self._pipeline is not None:
            self._ready.clear()
            self._pipeline.forget()


class _Task:
    """A grammar that is to be compiled."""

    def __init__(self, grammars: CompiledGrammars, grammar: str) -> None:
        self.grammars = grammars
        self.grammar = grammar
        self.done: Future[None] = Future()


class Compiling:
    """Compiles in a thread, one after the other, and little of the time while the pipelines have
    requests: those wait for the same processors and locks. `background` False: at once, where two
    models share what is compiled.
    """

    def __init__(self, background: bool) -> None:
        self._background = background
        self._thread: ThreadPoolExecutor | None = None
        self._waiting: deque[_Task] = deque()
        self._running: _Task | None = None
        self._served_at = -_SERVING_SECONDS
        self._allowance = Allowance(_SHARE, _AT_ONCE_SECONDS)

    @property
    def idle(self) -> bool:
        """Whether nothing is being compiled."""
        return self._running is None or self._running.done.done()

    def start(self, grammars: CompiledGrammars, grammar: str) -> Future[None]:
        """Take a grammar on; the future tells how it went."""
        task = _Task(grammars, grammar)
        if self._background:
            self._waiting.append(task)
        else:
            self._compile(task)
        return task.done

    def go_on(self, serving: bool) -> None:
        """Begin with the next one where it is time for it. `serving`: the pipelines have
        requests.
        """
        if serving:
            self._served_at = time.monotonic()
        if not self._waiting or not self.idle:
            return
        held = (
            time.monotonic() - self._served_at < _SERVING_SECONDS
            and self._allowance.left(time.monotonic()) < 0
        )
        task = next(
            (task for task in self._waiting if not held or len(task.grammar) <= _SMALL), None
        )
        if task is None:
            return
        self._waiting.remove(task)
        if not task.done.set_running_or_notify_cancel():
            return
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "penstock-grammars")
        self._running = task
        self._thread.submit(self._compile, task)

    def _compile(self, task: _Task) -> None:
        begin = time.thread_time()
        error: Exception | None = None
        try:
            task.grammars.compile(task.grammar)
        except Exception as raised:
            error = raised
        if len(task.grammar) > _SMALL:
            self._allowance.use(time.thread_time() - begin, time.monotonic())
        if error is None:
            task.done.set_result(None)
        else:
            task.done.set_exception(error)
