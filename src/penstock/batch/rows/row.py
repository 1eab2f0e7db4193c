"""What flows through a job: a row, its outcome, and the form that makes a request of the one and an
output row of the other.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct

from penstock.batch.values.plain import UnstorableError, json_line
from penstock.errors import OutputError, PenstockError, text_of
from penstock.types import Usage

if TYPE_CHECKING:
    import pyarrow as pa

    from penstock.batch.read.sources import Source
    from penstock.batch.write.tables import Tables

UNKNOWN_BYTES = 64
"""What a value is counted for that cannot be measured."""
Stage = str
"""Where a row is: "read", "prompt", "engine", "parse", or a stage of its processor."""


class RowError(Struct, frozen=True, omit_defaults=True):
    """Why a row failed: `type` is the error's kind, `stage` where it happened, `message` one line
    for a person.

    Where an HTTP endpoint answered with an error, `status` and `body` are those of its answer.
    """

    type: str
    stage: Stage
    retryable: bool
    message: str
    status: int | None = None
    body: str | None = None


class Outcome(Struct, array_like=True, omit_defaults=True):
    """What became of a row. Journals and caches keep what `stored` gives.

    `response` is the text of the answer; for OpenAI batch lines it is the response's body as JSON
    text. `parsed` holds the fields of a structured answer. `latency_ms` runs from admission to the
    last token, retries included. `packed` holds the numbers of a vector, as the form packs them.
    `skipped`: the row is to be left out of the output.
    """

    response: str | None = None
    error: RowError | None = None
    finish_reason: str | None = None
    usage: Usage | None = None
    attempts: int = 0
    latency_ms: float | None = None
    parsed: Any = None
    skipped: bool = False
    packed: bytes = b""

    def stored(self) -> Outcome:
        """As it is written and read again: a vector stands in `response`, in base64, as in what
        every version has written.
        """
        if not self.packed:
            return self
        text = b64encode(self.packed).decode()
        return msgspec.structs.replace(self, response=text, packed=b"")

    @property
    def nbytes(self) -> int:
        """About how many bytes the answer takes."""
        parsed = nbytes(self.parsed) if self.parsed is not None else 0
        return len(self.response or "") + len(self.packed) + parsed


class Row(Struct, eq=False):
    """One row of a data set.

    `fault` says why the row could not be read; `values` is None then, or holds what could be.
    `record_batch` and `offset` point to the row's Arrow form if it has one, so that columns pass
    through without a change of type. `request`, `digest` and `prefix` are set when the row's
    request has been made: `digest` names the request (16 bytes), `prefix` sorts rows that share the
    start of a prompt next to each other. `failure` is why the request could not be made, if that
    was found out ahead. `failed_before` is why the row failed in the processor that it comes from.
    `longest` is how many tokens its answer may have, 0 if there is no limit. `images` are the URIs
    of the images that were loaded for it, a list for each value, such as a PDF with its pages.
    `key` is a hash of its key in an incremental job, 0 in other jobs. `blank`: its prompt has
    nothing of the row, as the columns that it is made of are empty.
    """

    index: int
    values: dict[str, Any] | None
    fault: str | None = None
    nbytes: int = 0
    record_batch: pa.RecordBatch | None = None
    offset: int = 0
    request: Any = None
    digest: bytes = b""
    prefix: str = ""
    shareable: bool = False
    longest: int = 0
    failure: PenstockError | None = None
    images: list[list[str]] | None = None
    failed_before: RowError | None = None
    key: int = 0
    blank: bool = False

    @property
    def sound(self) -> dict[str, Any] | None:
        """The values of a row that could be read; None of any other."""
        return self.values if self.fault is None else None


class FailedRow(dict[str, Any]):
    """An output row that failed: a dict like others. Another processor knows it by its class,
    because data may have columns of these names.
    """

    def __init__(self, row: dict[str, Any], error: RowError) -> None:
        super().__init__(row)
        self.why = error


def row_error(error: PenstockError, stage: Stage) -> RowError:
    """The error of a row that `error` ended at `stage`."""
    body = getattr(error, "body", None)
    status = getattr(error, "http_status", None) if body is not None else None
    return RowError(
        error.kind,
        stage,
        error.retryable,
        text_of(error),
        status,
        None if body is None else str(body),
    )


def failed(error: PenstockError, stage: Stage, attempts: int = 0) -> Outcome:
    """The outcome of a row that `error` ended at `stage`."""
    return Outcome(error=row_error(error, stage), attempts=attempts)


def nbytes(value: Any) -> int:
    """About how many bytes a value takes: what bounds memory."""
    if isinstance(value, bytes):
        return len(value)
    try:
        return len(_encode(value))
    except Exception:  # values of the caller's own types can fail in any way
        return UNKNOWN_BYTES


def _opaque(value: Any) -> bytes:
    # An image of Pillow's, which tells no bytes.
    pixels = getattr(value, "width", 0) * getattr(value, "height", 0)
    return bytes(getattr(value, "nbytes", None) or 4 * pixels or UNKNOWN_BYTES)


_encode = msgspec.msgpack.Encoder(enc_hook=_opaque).encode


class RowForm(ABC):
    """The form of a job's rows.

    `columns` are those a request is made of (None: any). `every_row`: rows done earlier must be
    prepared again when a job resumes, because later rows depend on them. `flat_columns` are the
    result columns, objects taken apart. `preparing` names the stage of rows that cannot be
    prepared. `concludes`: a row's outcome is more than that of its request. `by_length`: rows of
    about equal length are asked together. `json_ready`: output rows hold what `values.for_json`
    makes. `job_params` are parameters that all rows have alike: where an engine refuses one, it
    does so for the job. `kind` is the form's name in a job's identity. `created` is when the job
    began, in Unix seconds.
    """

    columns: tuple[str, ...] | None = None
    every_row: bool = False
    flat_columns: tuple[str, ...] = ()
    preparing: Stage = "prompt"
    concludes: bool = False
    by_length: bool = False
    json_ready: bool = True
    job_params: tuple[str, ...] = ()
    kind: str = "columns"
    created: int = 0

    async def ready(self, rows: list[Row]) -> AsyncIterator[list[Row]]:
        """The rows in lists, each as soon as it can be prepared. Slow work, which would block the
        event loop, happens here.
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
