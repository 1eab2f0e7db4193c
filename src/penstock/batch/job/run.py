"""`penstock.run` and `penstock.arun`: a job in one call."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable
from typing import Any, ParamSpec, TypeVar

from penstock.batch.job.job import Job
from penstock.batch.job.result import RunResult

P = ParamSpec("P")
T = TypeVar("T")


def _with_parameters_of(job: Callable[P, Job]) -> Callable[[Callable[..., T]], Callable[P, T]]:
    """Give a function the parameters of `Job`, for type checkers, IDEs and `help`, without writing
    them again.
    """

    def decorate(function: Callable[..., T]) -> Callable[P, T]:
        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            return function(*args, **kwargs)

        call.__signature__ = inspect.signature(job).replace(  # type: ignore[attr-defined]
            return_annotation=inspect.signature(function).return_annotation
        )
        return call

    return decorate


@_with_parameters_of(Job)
def run(*args: Any, **kwargs: Any) -> RunResult:
    """Run a language model over a data set and return when all rows are done. Takes what `Job`
    takes.

    Works inside a running event loop too (as in a notebook), except with an engine object: use
    `arun` there. Ctrl-C and SIGTERM finish the rows in flight, keep what is done and raise
    `KeyboardInterrupt`; the same call resumes.
    """
    return Job(*args, **kwargs).run()


@_with_parameters_of(Job)
def arun(*args: Any, **kwargs: Any) -> Awaitable[RunResult]:
    """Like `run`, for a running event loop: `result = await penstock.arun(...)`. Cancelling it
    keeps what is done.
    """
    return Job(*args, **kwargs).arun()
