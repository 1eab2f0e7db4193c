"""The rows of a processor: preprocessed on their way in, postprocessed on their way out. In a job
or a stream of one process this is the row form (`ProcessorRows`); between the processes of Ray Data
rows travel as bytes (`Carried`).
"""

from __future__ import annotations

import asyncio
import time
from base64 import b64decode
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from functools import partial
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Literal, cast

import msgspec
from msgspec import Struct

from penstock.batch.pipeline.offload import Offload, is_ctrl_c, user_error
from penstock.batch.read.sources import Source
from penstock.batch.rows.requests import conversation_text
from penstock.batch.rows.row import (
    FailedRow,
    Outcome,
    Row,
    RowError,
    RowForm,
    Stage,
    nbytes,
    row_error,
)
from penstock.batch.stages.base import MAPPING, StatefulStage
from penstock.batch.stages.ray_columns import INFERENCE_ERROR
from penstock.batch.values.packed import pack, unpack
from penstock.batch.values.plain import json_line, plain_row
from penstock.errors import JobError, UserCodeError, text_of

if TYPE_CHECKING:
    from penstock.batch.write.tables import Tables

RowFunction = Callable[[dict[str, Any]], Mapping[str, Any]]

_AHEAD = 64
"""How many rows may have gone through `preprocess` without being counted: each may be large."""
_TURN_SECONDS = 0.005


HeldAs = Literal["values", "json", "packed"]
"""How a result waits for its place in the output: in memory as it is, as its line of JSON, or as
bytes that keep the type of each value.
"""


class OutputRows:
    """Makes the output rows of one run.

    With `keep` all rows have the same columns: those of the input, those that the processor makes,
    `status` and `error`. A value that a row lacks is null. The columns that the processor makes
    show in the first good row, so call `learn` with it early; then they are `known`. With
    `ray_columns` all rows have `__inference_error__` too, which is empty in a good row.
    """

    def __init__(self, *, keep: bool, ray_columns: bool = False) -> None:
        self._keep = keep
        self._good: dict[str, Any] = {"status": "ok", "error": None}
        if ray_columns:
            self._good[INFERENCE_ERROR] = ""
        self._names: dict[str, None] = {}

    @property
    def known(self) -> bool:
        """Whether it is known which columns a failed row gets."""
        return bool(self._names) or not self._keep

    def learn(self, values: Mapping[str, Any] | None, made: Mapping[str, Any]) -> None:
        """Note the columns of a good row: its input's `values`, and those that were `made`."""
        if not self._keep:
            return
        for columns in (values or {}, made):
            if not self._names.keys() >= columns.keys():
                self._names.update(dict.fromkeys(columns))

    def good(self, values: Mapping[str, Any] | None, made: dict[str, Any]) -> dict[str, Any]:
        """The output row of an input row from which `made` was made."""
        if not self._keep:
            return made
        return {**dict.fromkeys(values or ()), **made, **self._good}

    def bad(self, values: Mapping[str, Any] | None, error: RowError) -> dict[str, Any]:
        """The output row of an input row that failed, or that could not be read."""
        row = dict(values or {})
        for name in self._names:
            row.setdefault(name)
        row |= {"status": "error", "error": msgspec.structs.asdict(error)}
        if INFERENCE_ERROR in self._good:
            row[INFERENCE_ERROR] = f"{error.type}: {error.message}"
        return FailedRow(row, error)


class ProcessorRows(RowForm):
    """The row form of a processor. Make it inside a running event loop.

    `preprocess` gets a row's columns and returns further ones. `postprocess` gets all columns and
    returns the output row. `threads` is how many threads each of the two has. `made` makes the
    output rows, with `keep_errors` also from rows that failed. Unless results are `held_as`
    "values", they go to an output, and a row with a value that no output can hold fails.
    """

    preparing: Stage = "preprocess"
    concludes = True
    json_ready = False

    def __init__(
        self,
        stages: Mapping[str, StatefulStage],
        preprocess: RowFunction | None = None,
        postprocess: RowFunction | None = None,
        *,
        threads: tuple[int, int] = (1, 1),
        keep_errors: bool = False,
        ray_columns: bool = False,
        held_as: HeldAs = "values",
    ) -> None:
        self._stages = [stage for stage in stages.values() if stage.fn is not None]
        self._preprocess = preprocess
        self._postprocess = postprocess
        self._before = Offload(threads[0])
        self._after = Offload(threads[1])
        self.keep_errors = keep_errors
        self.made = OutputRows(keep=keep_errors, ray_columns=ray_columns)
        self._held_as = held_as
        self._opaque = False
        read = [
            {*stage.get_required_input_keys(), *stage.get_optional_input_keys()}
            for stage in self._stages
        ]
        self._read = sorted(set().union(*read))
        self._encode = msgspec.msgpack.Encoder(order="deterministic", enc_hook=self._content).encode

    # In
    async def ready(self, rows: list[Row]) -> AsyncIterator[list[Row]]:
        if not self.keep_errors:  # then a row that failed in another processor is a row like others
            for row in rows:
                row.failed_before = None
        if self._preprocess is None:
            yield rows
            return
        before = self._before
        under_way: deque[tuple[Row, asyncio.Future[None]]] = deque()
        done: list[Row] = []
        turn = time.perf_counter()
        coming = iter(rows)
        following = next(coming, None)
        while following is not None or under_way:
            if following is not None and not before.in_place and len(under_way) < _AHEAD:
                under_way.append((following, before.submit(partial(self._begin, following))))
                following = next(coming, None)
            elif under_way:
                row, future = under_way.popleft()
                if not future.done() or len(done) >= _AHEAD:
                    if done:
                        yield done
                        done = []
                    await asyncio.wait([future])
                done.append(row)
            elif following is not None:
                before.run(self._begin, following)
                done.append(following)
                following = next(coming, None)
                if len(done) >= _AHEAD:
                    yield done
                    done = []
                    if time.perf_counter() - turn > _TURN_SECONDS:
                        await asyncio.sleep(0)  # others' turn
                        turn = time.perf_counter()
        yield done

    def _begin(self, row: Row) -> None:
        assert self._preprocess is not None
        if (given := row.sound) is None or row.failed_before is not None:
            return
        try:
            values = dict(given)  # a copy, as `preprocess` may change it
            columns = self._preprocess(values)
            if not isinstance(columns, MAPPING):
                raise UserCodeError(f"preprocess gave a {type(columns).__name__}, no dict")
            row.request = {**values, **columns}
            row.nbytes = max(row.nbytes, nbytes(row.request))
        except BaseException as error:
            if is_ctrl_c(error):
                raise
            row.failure = user_error(error)

    def prepare(self, row: Row) -> None:
        if row.request is None:
            row.request = row.values or {}
        values: dict[str, Any] = row.request
        row.shareable = bool(self._stages)
        for stage in self._stages:
            if not stage.shareable(values):
                row.shareable = False
                break
        # The digest finds equal requests, and the same row in another run. Else it is not needed.
        if row.shareable or self._held_as != "values":
            read = self._read
            asked = {name: values[name] for name in read if name in values} if read else values
            self._opaque = False
            try:
                encoded = self._encode(asked)
            except Exception:  # a number or a text that has no encoding
                encoded, self._opaque = repr(asked).encode(errors="backslashreplace"), True
            row.shareable = row.shareable and not self._opaque
            row.digest = blake2b(encoded, digest_size=16).digest()
        params = values.get("sampling_params")
        if params is not None:
            longest = params.get("max_tokens") if isinstance(params, MAPPING) else None
            row.longest = longest if isinstance(longest, int) else 0
        messages = values.get("messages")
        try:
            row.prefix = (
                conversation_text(messages)
                if messages is not None
                else str(values.get("prompt") or "")
            )
        except Exception:  # no messages, as the stage that reads them will find
            row.prefix = ""

    def _content(self, value: Any) -> Any:
        """What a value of an unknown type adds to a digest: the items of an array, or the name of
        the type, which is the same in each process. Two rows with such a value count as different.
        """
        if hasattr(value, "tolist"):
            return value.tolist()
        self._opaque = True
        return type(value).__qualname__

    # Out
    def conclude(self, row: Row, outcome: Outcome) -> Outcome | Awaitable[Outcome]:
        if outcome.error is not None:
            return outcome
        if self._postprocess is None:
            return self._end(row, outcome)
        if self._after.in_place:
            return self._after.run(self._end, row, outcome)
        return self._after.submit(partial(self._end, row, outcome))

    def _end(self, row: Row, outcome: Outcome) -> Outcome:
        try:
            columns = row.request | outcome.parsed
            made: Mapping[str, Any] = columns
            if self._postprocess is not None:
                made = self._postprocess(columns)
                if not isinstance(made, MAPPING):
                    raise UserCodeError(f"postprocess gave a {type(made).__name__}, no dict")
            # A row that is kept must not depend on which rows came before, so only others `learn`.
            if self._held_as == "values":
                parsed: Any = dict(made)
                self.made.learn(row.values, parsed)
            else:
                parsed = self._stored(row, made)
        except BaseException as error:
            if is_ctrl_c(error):
                raise
            return self.failure(row, user_error(error), "postprocess", outcome.attempts)
        outcome.parsed = parsed
        return outcome

    def _stored(self, row: Row, columns: Mapping[str, Any]) -> bytes:
        if self._held_as == "json":
            plain, wrong = plain_row(columns, json=True)
            data = json_line(self.made.good(row.values, plain), ready=True)
        else:
            data, wrong = pack(columns)
        if wrong is not None:
            raise UserCodeError(f"{wrong}; leave it out in postprocess")
        return data

    def line(self, row: Row, outcome: Outcome) -> bytes:
        parsed = outcome.parsed
        if isinstance(parsed, str):  # as it comes from the journal
            parsed = outcome.parsed = b64decode(parsed)
        if isinstance(parsed, bytes) and parsed.startswith(b"{"):
            return parsed
        return super().line(row, outcome)

    def tables(self, source: Source) -> Tables:
        from penstock.batch.write.tables import RowTables

        return RowTables(self, source.schema, keeps_errors=self.keep_errors)

    def close(self) -> None:
        self._before.close()
        self._after.close()

    def output(self, row: Row, outcome: Outcome) -> dict[str, Any]:
        values, error, parsed = row.values, outcome.error, outcome.parsed
        if error is not None:
            # Stages may read what no output can hold.
            if self._held_as != "values" and values is not None:
                values, wrong = plain_row(values)
                if wrong is not None:
                    error = msgspec.structs.replace(error, message=f"{error.message}; {wrong}")
            return self.made.bad(values, error)
        if isinstance(parsed, str):  # as it comes from the journal
            parsed = b64decode(parsed)
        return self.made.good(values, unpack(parsed) if isinstance(parsed, bytes) else parsed)


class Carried(Struct):
    """A row between processes: the columns it came with, those it has now, and its error if it
    failed.
    """

    values: dict[str, Any]
    columns: dict[str, Any]
    error: RowError | None = None

    def pack(self) -> bytes:
        """The row as bytes. Every value keeps its type; in the columns of a table some would
        not.
        """
        import pickle  # most jobs never need it

        return pickle.dumps(self, pickle.HIGHEST_PROTOCOL)


def unpack_row(data: bytes) -> Carried:
    """The row in these bytes, which another process of the same program has packed."""
    import pickle

    return cast(Carried, pickle.loads(data))


class Beginning:
    """Preprocesses rows. A row that fails becomes an error with `keep`, else raises `JobError`."""

    def __init__(self, preprocess: RowFunction | None, *, keep: bool) -> None:
        self._preprocess = preprocess
        self._keep = keep

    def __call__(self, rows: Sequence[dict[str, Any]]) -> list[bytes]:
        return [self._begin(row).pack() for row in rows]

    def _begin(self, values: dict[str, Any]) -> Carried:
        if self._preprocess is None:
            return Carried(values, values)
        try:
            given = dict(values)  # a copy, as `preprocess` may change it
            made = _mapping(self._preprocess(given), "preprocess")
            return Carried(values, {**given, **made})
        except BaseException as error:
            if is_ctrl_c(error):
                raise
            return Carried(values, values, failure(error, "preprocess", self._keep))


class Ending:
    """Postprocesses rows, and makes the output rows (`OutputRows`), each batch by itself."""

    def __init__(
        self, postprocess: RowFunction | None, *, keep: bool, ray_columns: bool = False
    ) -> None:
        self._postprocess = postprocess
        self._keep = keep
        self._ray_columns = ray_columns

    def __call__(self, rows: Sequence[bytes]) -> list[dict[str, Any]]:
        ended = [self._end(unpack_row(data)) for data in rows]
        output = OutputRows(keep=self._keep, ray_columns=self._ray_columns)
        for row in ended:
            if row.error is None:
                output.learn(row.values, row.columns)
        return [
            output.good(row.values, row.columns)
            if row.error is None
            else output.bad(row.values, row.error)
            for row in ended
        ]

    def _end(self, row: Carried) -> Carried:
        if row.error is None and self._postprocess is not None:
            try:
                row.columns = dict(_mapping(self._postprocess(dict(row.columns)), "postprocess"))
            except BaseException as error:
                if is_ctrl_c(error):
                    raise
                row.error = failure(error, "postprocess", self._keep)
        return row


def failure(error: BaseException, stage: str, keep: bool) -> RowError:
    """The error for a row's output, if the row is kept. Raises `JobError` if it is not, or if the
    error is not the row's own.
    """
    known = user_error(error)
    if not keep or isinstance(error, JobError):
        raise JobError(f"a row failed at {stage}: {text_of(known)}") from error
    return row_error(known, stage)


def _mapping(made: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(made, Mapping):
        raise UserCodeError(f"{what} gave a {type(made).__name__}, no dict")
    return made
