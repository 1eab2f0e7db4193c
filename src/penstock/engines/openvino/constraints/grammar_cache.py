"""The cache of compiled grammars, which a thread fills while the pipeline steps.

The engine itself compiles a grammar in the step that first uses it, and caches it for ever. Here a
grammar is compiled before its first step, and the whole cache is emptied when it is full.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from penstock.engines.openvino.constraints.bare_pipeline import BarePipeline
from penstock.engines.openvino.constraints.throttle import SERVING_SECONDS, Allowance

KEPT = 256
"""Capacity of the cache in grammars; each takes 30 to 300 kB."""
_SMALL = 2_000
"""Grammars of at most so many characters are compiled at once: they take some milliseconds."""


class CompiledGrammars:
    """The compiled grammars of one tokenizer. `logits` returns the size of the model's logits; it
    is called on first use.
    """

    def __init__(self, tokenizer: Any, logits: Callable[[], int]) -> None:
        self._tokenizer = tokenizer
        self._logits = logits
        self._ready: set[str] = set()
        self._pipeline: BarePipeline | None = None

    def ready(self, grammar: str) -> bool:
        """Whether the grammar is compiled, so that a step may use it."""
        return grammar in self._ready

    def compile(self, grammar: str) -> None:
        """Compile a grammar unless it is cached. Passes on the engine's errors."""
        if grammar in self._ready:
            return
        if self._pipeline is None:
            self._pipeline = BarePipeline(self._tokenizer, self._logits())
        self._pipeline.compile(grammar)
        self._ready.add(grammar)

    @property
    def many(self) -> bool:
        """Whether the cache is full."""
        return len(self._ready) >= KEPT

    def forget(self) -> None:
        """Empty the cache. Nothing may be compiling meanwhile. Running requests keep their
        grammars.
        """
        if self._pipeline is not None:
            self._ready.clear()
            self._pipeline.forget()


class _Task:
    """A queued grammar, with a future for the outcome."""

    def __init__(self, grammars: CompiledGrammars, grammar: str) -> None:
        self.grammars = grammars
        self.grammar = grammar
        self.done: Future[None] = Future()


class Compiling:
    """Compiles queued grammars in one thread.

    It works little while the pipelines serve requests, which need the same processors and locks.
    With `background` False it compiles at once, in the caller's thread: for two models that share
    one cache.
    """

    def __init__(self, background: bool) -> None:
        self._background = background
        self._thread: ThreadPoolExecutor | None = None
        self._waiting: deque[_Task] = deque()
        self._running: _Task | None = None
        self._served_at = -SERVING_SECONDS
        self._allowance = Allowance()

    @property
    def idle(self) -> bool:
        """Whether nothing is being compiled."""
        return self._running is None or self._running.done.done()

    def start(self, grammars: CompiledGrammars, grammar: str) -> Future[None]:
        """Queue a grammar. The future resolves once it is compiled, or holds the engine's error."""
        task = _Task(grammars, grammar)
        if self._background:
            self._waiting.append(task)
        else:
            self._compile(task)
        return task.done

    def go_on(self, serving: bool) -> None:
        """Start on the next grammar if its time has come. `serving`: whether the pipelines have
        requests.
        """
        if serving:
            self._served_at = time.monotonic()
        if not self._waiting or not self.idle:
            return
        held = (
            time.monotonic() - self._served_at < SERVING_SECONDS
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
