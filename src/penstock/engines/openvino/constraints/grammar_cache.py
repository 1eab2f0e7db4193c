"""What a pipeline has compiled: grammars, made ready by a thread of low priority while the pipeline steps.

The engine compiles a grammar in the step that uses it first and keeps it with the tokenizer, without end. Here it is
compiled beforehand, and after so many all are dropped: a grammar that is used again is compiled again.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from penstock.engines.openvino.constraints.bare_pipeline import BarePipeline

KEPT = 256
"""CompiledGrammars that are kept; 30 to 300 kB each."""
_LOW_PRIORITY = 10
"""Not the lowest: for moments the thread holds the interpreter lock, for which the steps wait."""


class CompiledGrammars:
    """Those of one tokenizer. `logits` tells the size of the model's logits, and is asked when it is needed."""

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
        """Forget all of them. Only where nothing is being compiled; requests under way keep theirs."""
        if self._pipeline is not None:
            self._ready.clear()
            self._pipeline.forget()


class Compiling:
    """Compiles in a thread. `background` False: at once, where two models share what is compiled."""

    def __init__(self, background: bool) -> None:
        self._background = background
        self._thread: ThreadPoolExecutor | None = None
        self._last: Future[None] | None = None

    @property
    def idle(self) -> bool:
        """Whether nothing is being compiled, nor waits for it."""
        return self._last is None or self._last.done()

    def start(self, grammars: CompiledGrammars, grammar: str) -> Future[None]:
        """Begin to compile; the future tells how it went. They are compiled in this order."""
        if self._background:
            if self._thread is None:
                self._thread = ThreadPoolExecutor(1, "penstock-grammars", initializer=_give_way)
            self._last = self._thread.submit(grammars.compile, grammar)
            return self._last
        done: Future[None] = Future()
        try:
            grammars.compile(grammar)
        except Exception as error:
            done.set_exception(error)
        else:
            done.set_result(None)
        return done


def _give_way() -> None:
    """Threads that this one starts inherit its priority; on Linux it is a thread's own."""
    with contextlib.suppress(OSError, AttributeError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOW_PRIORITY)
