"""A processor's rows where its stages are in different processes: what travels between them, and
each process's part.

The parts are those of a local run: the same stages in the same pools, the same errors, the same
output rows.
"""

from __future__ import annotations

import asyncio
import copy
import pickle
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from msgspec import Struct

from penstock.batch.pipeline.offload import is_ctrl_c, user_error
from penstock.batch.pipeline.processor_rows import OutputRows
from penstock.batch.pipeline.stage_chain import StagePool
from penstock.batch.rows.row import RowError, failed
from penstock.batch.stages.base import StatefulStage, workers
from penstock.errors import JobError, UserCodeError, text_of

RowFunction = Callable[[dict[str, Any]], Mapping[str, Any]]


class Carried(Struct):
    """A row on its way: the columns that it came with, those it has now, and why it failed if it
    did.
    """

    values: dict[str, Any]
    columns: dict[str, Any]
    error: RowError | None = None

    def pack(self) -> bytes:
        """As bytes, with every value as it is: columns of a table would change types on the way."""
        return pickle.dumps(self, pickle.HIGHEST_PROTOCOL)


def unpack(data: bytes) -> Carried:
    """The row that was packed, by a process of the same program."""
    row: Carried = pickle.loads(data)
    return row


class Beginning:
    """Preprocesses rows. With `keep` a row that fails is carried on as an error, else it raises
    `JobError`.
    """

    def __init__(self, preprocess: RowFunction | None, *, keep: bool) -> None:
        self._preprocess = preprocess
        self._keep = keep

    def __call__(self, rows: Sequence[dict[str, Any]]) -> list[bytes]:
        return [self._begin(row).pack() for row in rows]

    def _begin(self, values: dict[str, Any]) -> Carried:
        if self._preprocess is None:
            return Carried(values, values)
        try:
            return Carried(
                values, {**values, **_mapping(self._preprocess(dict(values)), "preprocess")}
            )
        except BaseException as error:
            if is_ctrl_c(error):
                raise
            return Carried(values, values, failure(error, "preprocess", self._keep))


class StageProcess:
    """One worker of a stage, in an event loop of its process. Started by its first rows."""

    def __init__(self, name: str, stage: StatefulStage, batch_size: int, *, keep: bool) -> None:
        single = copy.copy(stage)
        most = workers(stage.map_batches_kwargs, name)
        single.map_batches_kwargs = {**stage.map_batches_kwargs, "concurrency": 1, "compute": None}
        if getattr(stage.fn, "shares_rates", False):
            single.fn_constructor_kwargs = {**stage.fn_constructor_kwargs, "processes": most}
        self._pool = StagePool(name, single, batch_size)
        self._name = name
        self._keep = keep
        self._starting: asyncio.Task[None] | None = None

    async def __call__(self, rows: Sequence[bytes]) -> list[bytes]:
        if self._starting is None:
            self._starting = asyncio.create_task(self._pool.start())
        await asyncio.shield(self._starting)
        return list(await asyncio.gather(*(self._process(data) for data in rows)))

    async def _process(self, data: bytes) -> bytes:
        row = unpack(data)
        if row.error is not None:
            return data
        try:
            row.columns = {**row.columns, **await self._pool.process(dict(row.columns))}
        except Exception as error:
            row.error = failure(error, self._name, self._keep)
        return row.pack()


class Ending:
    """Postprocesses rows, and makes the output rows (`OutputRows`), each batch by itself."""

    def __init__(self, postprocess: RowFunction | None, *, keep: bool) -> None:
        self._postprocess = postprocess
        self._keep = keep

    def __call__(self, rows: Sequence[bytes]) -> list[dict[str, Any]]:
        ended = [self._end(unpack(data)) for data in rows]
        output = OutputRows(keep=self._keep)
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
    """What is told of a row's error, if the row is kept. Raises `JobError` if not, or if the error
    is not the row's.
    """
    known = user_error(error)
    if not keep or isinstance(error, JobError):
        raise JobError(f"a row failed at {stage}: {text_of(known)}") from error
    said = failed(known, stage, 1).error
    assert said is not None
    return said


def _mapping(made: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(made, Mapping):
        raise UserCodeError(f"{what} gave a {type(made).__name__}, no dict")
    return made
