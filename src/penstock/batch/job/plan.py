"""A checked job: what is read, asked and written, and how."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from penstock.batch.job.counts import Counts
from penstock.batch.job.policy import ErrorPolicy, Limits
from penstock.batch.pipeline.pipeline import Pipeline, Step
from penstock.batch.read.base import Source
from penstock.batch.rows.row import RowForm
from penstock.batch.write.outputs import Output


@dataclass(kw_only=True)
class Plan:
    """What `step` is to do with the rows of `source`. `identity` is all that decides the output."""

    source: Source
    form: RowForm
    step: Step
    output: Output | Literal["-"] | None = None
    identity: dict[str, Any] = field(default_factory=dict)
    limit: int | None = None
    keep_order: bool = True
    policy: ErrorPolicy = field(default_factory=lambda: ErrorPolicy("keep"))
    limits: Limits = field(default_factory=Limits)
    retry_failed: bool = False
    fresh: bool = False
    row_timeout: float | None = None
    progress: bool | None = None

    def pipeline(self, counts: Counts) -> Pipeline:
        """What answers the rows, not started yet."""
        return Pipeline(self.step, self.form, counts)

    @property
    def total(self) -> int | None:
        """The number of rows, if known; where only a limit is, there may be fewer."""
        known = [number for number in (self.source.rows, self.limit) if number is not None]
        return min(known, default=None)

    @property
    def value_columns(self) -> tuple[str, ...] | None:
        """The columns that must become Python values (None: all).

        Where columns pass through in Arrow form, only those that requests are made of.
        """
        return (
            self.form.columns if isinstance(self.output, Output) and self.output.columnar else None
        )
