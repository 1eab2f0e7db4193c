"""Batch jobs: a language model over every row of a data set, resumable, in bounded memory."""

from penstock import lazy

TYPE_CHECKING = False  # known to type checkers; typing itself takes longer to import than this face
if TYPE_CHECKING:
    from penstock.batch.counts import Counts as Counts
    from penstock.batch.interrupts import JobInterrupted as JobInterrupted
    from penstock.batch.job import Job as Job
    from penstock.batch.result import RunResult as RunResult
else:
    __getattr__, __dir__, __all__ = lazy.attach(
        __name__,
        {
            "penstock.batch.counts": ("Counts",),
            "penstock.batch.interrupts": ("JobInterrupted",),
            "penstock.batch.job": ("Job",),
            "penstock.batch.result": ("RunResult",),
        },
    )
