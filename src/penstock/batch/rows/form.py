"""What a job's rows ask, and how their answers stand in the output: a form for each kind of job."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable
from typing import TYPE_CHECKING, Any

from penstock.batch.read.sources import Source
from penstock.batch.rows.repair import Repair
from penstock.batch.rows.row import Outcome, Row, Stage, failed
from penstock.batch.values.plain import UnstorableError, json_line
from penstock.engines.base import LLMEngine
from penstock.errors import OutputError, PenstockError

if TYPE_CHECKING:
    from penstock.batch.write.tables import Tables


class RowForm(ABC):
    """The form of a job's rows.

    `columns` are those a request is made of (None: any). `every_row`: rows done earlier must be
    prepared again when a job resumes, because later rows depend on them. `flat_columns` are the
    result columns, objects taken apart. `preparing` names the stage of rows that cannot be
    prepared. `concludes`: a row's outcome is more than that of its request. `json_ready`: output
    rows hold what `values.for_json` makes. `kind` is the form's name in a job's identity. `created`
    is when the job began, in Unix seconds.
    """

    columns: tuple[str, ...] | None = None
    every_row: bool = False
    flat_columns: tuple[str, ...] = ()
    preparing: Stage = "prompt"
    concludes: bool = False
    json_ready: bool = True
    kind: str = "columns"
    created: int = 0

    async def ready(self, rows: list[Row]) -> AsyncIterator[list[Row]]:
        """The rows in lists, each as soon as it can be prepared.

        What would hold up the event loop is done here.
        """
        yield rows

    @abstractmethod
    def prepare(self, row: Row) -> None:
        """Set the row's request, digest and prefix. Raises `RequestError`."""

    def conclude(self, row: Row, outcome: Outcome) -> Outcome | Awaitable[Outcome]:
        """The row's outcome, given that of its request, which rows with equal requests share."""
        return outcome

    def failure(self, row: Row, error: PenstockError, stage: Stage, attempts: int) -> Outcome:
        """The outcome of a row that failed for good."""
        return failed(error, stage, attempts)

    @abstractmethod
    def output(self, row: Row, outcome: Outcome) -> dict[str, Any]: ...

    def line(self, row: Row, outcome: Outcome) -> bytes:
        """The output row as a line of JSON. Raises `OutputError`."""
        try:
            return json_line(self.output(row, outcome), ready=self.json_ready)
        except UnstorableError as error:  # a type of Arrow's that others have added
            raise OutputError(f"row {row.index} cannot be stored: {error}") from error

    def tables(self, source: Source) -> Tables | None:
        """What makes Arrow tables of the output rows; None where they are as their values are."""
        return None

    def close(self) -> None:  # noqa: B027 (most have nothing to close)
        """No more rows will come."""


class EngineForm(RowForm):
    """A form whose rows are one request each to one engine.

    `repair` says when a row is asked again with other words.
    """

    repair = Repair()

    @abstractmethod
    def ask(self, engine: LLMEngine, row: Row) -> Awaitable[Outcome]:
        """The row's outcome. Raises what the engine raises."""

    def check_engine(self, engine: LLMEngine) -> None:
        """Raise `PenstockError` for what a running engine could not do for any row."""
