"""The rows of a processor in a job or a stream: preprocessed on their way in, postprocessed on
their way out.
"""

from __future__ import annotations

import asyncio
from base64 import b64decode
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from functools import partial
from hashlib import blake2b
from itertools import islice
from typing import Any

import msgspec

from penstock.batch.pipeline.offload import Offload
from penstock.batch.pipeline.output_rows import OutputRows
from penstock.batch.rows.requests import conversation_text
from penstock.batch.rows.row import Outcome, Row, RowError, Stage, failed, nbytes
from penstock.batch.rows.user_code import is_ctrl_c, user_error
from penstock.batch.stages.base import StatefulStage
from penstock.batch.values.packed import pack, unpack
from penstock.batch.values.plain import plain_row
from penstock.errors import PenstockError, UserCodeError

RowFunction = Callable[[dict[str, Any]], Mapping[str, Any]]

_AHEAD = 64
"""Rows that `preprocess` has made requests of, and nobody has counted: each may be large."""


class ProcessorRows:
    """The form of such rows. Make it inside a running event loop.

    `preprocess` gets a row's columns and gives further ones; `postprocess` gets all of them and
    gives the output row. Each runs in so many threads. With `keep_errors` rows that failed are
    output rows too (`OutputRows`). `packed`: results go to an output, and are held as bytes; a row
    with a value that no output can hold fails.
    """

    columns: tuple[str, ...] | None = None
    every_row: bool = False
    flat_columns: tuple[str, ...] = ()
    preparing: Stage = "preprocess"
    concludes: bool = True
    json_ready: bool = False

    def __init__(
        self,
        stages: Mapping[str, StatefulStage],
        preprocess: RowFunction | None = None,
        postprocess: RowFunction | None = None,
        *,
        threads: tuple[int, int] = (1, 1),
        keep_errors: bool = False,
        packed: bool = False,
    ) -> None:
        self._stages = [stage for stage in stages.values() if stage.fn is not None]
        self._preprocess = preprocess
        self._postprocess = postprocess
        self._before = Offload(threads[0])
        self._after = Offload(threads[1])
        self.keep_errors = keep_errors
        self._rows = OutputRows(keep=keep_errors)
        self._packed = packed
        self._opaque = False
        read = [
            {*stage.get_required_input_keys(), *stage.get_optional_input_keys()}
            for stage in self._stages
        ]
        self._read = sorted(set().union(*read))
        self._encode = msgspec.msgpack.Encoder(order="deterministic", enc_hook=self._content).encode

    @property
    def columns_known(self) -> bool:
        """Whether a row that fails would have all columns that good ones have."""
        return self._rows.known

    def close(self) -> None:
        """Make no more calls of the user's functions."""
        self._before.close()
        self._after.close()

    # In
    async def ready(self, rows: list[Row]) -> AsyncIterator[list[Row]]:
        if not self.keep_errors:  # then a row that failed in another processor is one like others
            for row in rows:
                row.earlier = None
        if self._preprocess is None:
            yield rows
            return
        coming = iter(rows)
        under_way = deque((row, self._submit(row)) for row in islice(coming, _AHEAD))
        done: list[Row] = []
        while under_way:
            row, future = under_way.popleft()
            if not future.done() or len(done) >= _AHEAD:
                if done:
                    yield done
                    done = []
                # Where calls are made in place, others get their turn here.
                await asyncio.wait([future])
            done.append(row)
            if (following := next(coming, None)) is not None:
                under_way.append((following, self._submit(following)))
        yield done

    def _submit(self, row: Row) -> asyncio.Future[None]:
        return self._before.submit(partial(self._begin, row))

    def _begin(self, row: Row) -> None:
        assert self._preprocess is not None
        if row.values is None or row.earlier is not None:
            return
        try:
            columns = self._preprocess(dict(row.values))
            if not isinstance(columns, Mapping):
                raise UserCodeError(f"preprocess gave a {type(columns).__name__}, no dict")
            row.request = {**row.values, **columns}
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
        # Else nobody asks which rows are equal, or whether this is the same again.
        if row.shareable or self._packed:
            self._identify(row, values)
        if self._preprocess is not None:  # else it is no more than what was read
            row.nbytes += nbytes(values)
        params = values.get("sampling_params")
        if params is not None:
            longest = params.get("max_tokens") if isinstance(params, Mapping) else None
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

    def _identify(self, row: Row, values: Mapping[str, Any]) -> None:
        asked = (
            {name: values[name] for name in self._read if name in values} if self._read else values
        )
        self._opaque = False
        try:
            said = self._encode(asked)
        except Exception:  # a number or a text that has no encoding
            said, self._opaque = repr(asked).encode(errors="backslashreplace"), True
        row.shareable = row.shareable and not self._opaque
        row.digest = blake2b(said, digest_size=16).digest()

    def _content(self, value: Any) -> Any:
        """What stands for a value of an unknown type in a digest: arrays as they are, else its
        type, which is the same in each process. Rows with such values are not known to be equal.
        """
        if hasattr(value, "tolist"):
            return value.tolist()
        self._opaque = True
        return type(value).__qualname__

    # Out
    def conclude(self, row: Row, outcome: Outcome) -> Outcome | Awaitable[Outcome]:
        if outcome.error is not None:
            return outcome
        columns = row.request | outcome.parsed
        if self._postprocess is None:
            return self._end(row, columns, outcome)
        future = self._after.submit(partial(self._end, row, columns, outcome))
        return future.result() if future.done() else future

    def _end(self, row: Row, columns: dict[str, Any], outcome: Outcome) -> Outcome:
        try:
            if self._postprocess is not None:
                made = self._postprocess(columns)
                if not isinstance(made, Mapping):
                    raise UserCodeError(f"postprocess gave a {type(made).__name__}, no dict")
                columns = dict(made)
            parsed = self._stored(columns) if self._packed else columns
            if not self._packed:  # a row that lasts says the same whatever ran before it
                self._rows.learn(row.values, columns)
        except BaseException as error:
            if is_ctrl_c(error):
                raise
            return self.failure(row, user_error(error), "postprocess", outcome.attempts)
        if row.shareable:  # others will be told the outcome as it was
            return msgspec.structs.replace(outcome, parsed=parsed)
        outcome.parsed = parsed
        return outcome

    def _stored(self, columns: dict[str, Any]) -> bytes:
        data, wrong = pack(columns)
        if wrong is not None:
            raise UserCodeError(f"{wrong}; leave it out in postprocess")
        return data

    def failure(self, row: Row, error: PenstockError, stage: Stage, attempts: int) -> Outcome:
        return failed(error, stage, attempts)

    def output(self, row: Row, outcome: Outcome) -> dict[str, Any]:
        if outcome.error is not None:
            return self._bad(row.values, outcome.error)
        columns = outcome.parsed
        if isinstance(columns, str):  # as it comes from the journal
            columns = b64decode(columns)
        made: dict[str, Any] = unpack(columns) if isinstance(columns, bytes) else columns
        return self._rows.good(row.values, made)

    def _bad(self, values: dict[str, Any] | None, error: RowError) -> dict[str, Any]:
        if self._packed and values is not None:  # stages may read what no output can hold
            values, wrong = plain_row(values)
            if wrong is not None:
                error = msgspec.structs.replace(error, message=f"{error.message}; {wrong}")
        return self._rows.bad(values, error)
