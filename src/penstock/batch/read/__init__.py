"""Sources: one class for each kind of thing that rows can come from."""

from __future__ import annotations

import os
from collections.abc import AsyncIterable, Iterable, Mapping, Sequence
from typing import Any

from penstock.batch.read import file_source, text
from penstock.batch.read.files import reading
from penstock.batch.read.sources import AsyncRows, HasRows, Rows, Source, in_daemon_thread
from penstock.errors import InputError


async def open_source(source: Any) -> Source:
    """The source for `source`: a path, directory, glob, URL, "-", table, frame, (async) iterable of
    dicts, job, or result of a job.

    Looks at the first rows. Raises `InputError` if there is no such thing to read, or it is of an
    unknown form.
    """
    if isinstance(source, HasRows):
        source = await source.rows_to_read()
    if isinstance(source, str | os.PathLike):
        # Reading is never done on the event loop: a disk, a network or a pipe may be slow.
        path = os.fspath(source)
        return await in_daemon_thread(lambda: _open_path(path))
    if type(source).__name__ == "LazyFrame":
        raise InputError("a LazyFrame has no rows yet; give its .collect()")
    of_pandas = type(source).__module__.partition(".")[0] == "pandas"
    is_column = (of_pandas or type(source).__name__ == "Series") and not hasattr(source, "columns")
    if isinstance(source, Mapping | bytes) or is_column:
        raise InputError(
            f"a {type(source).__name__} is no data set; give a path, a table, or an iterable of"
            " dicts"
        )
    if isinstance(source, AsyncIterable):
        return await AsyncRows.open(source)
    # A record batch has only `__arrow_c_array__`, and a frame of an old pandas neither.
    arrow_names = ("__arrow_c_stream__", "__arrow_c_array__")
    if of_pandas or any(hasattr(source, name) for name in arrow_names):
        from penstock.batch.read import arrow

        return await in_daemon_thread(lambda: arrow.from_object(source))
    if isinstance(source, list | tuple) and not any(isinstance(row, Mapping) for row in source):
        _refuse_no_rows(source)
    if isinstance(source, Iterable):
        return await Rows.open(source)
    raise InputError(
        f"a {type(source).__name__} is no data set; give a path, a table, or an iterable of dicts"
    )


def _refuse_no_rows(values: Sequence[Any]) -> None:
    """Raise `InputError` for a list that holds something, but not one row."""
    if not values:
        return
    made = type(values[0]).__name__
    way = "; a glob names several files" if isinstance(values[0], str | os.PathLike) else ""
    raise InputError(
        f"a {type(values).__name__} of {made} is no data set: each row is a dict, such as"
        f" {{'text': …}}{way}"
    )


def _open_path(path: str) -> Source:
    if path == "-":
        return text.stdin()
    with reading(path):
        found = file_source.find(path)
        if found[0].form == "parquet":
            from penstock.batch.read import arrow

            return arrow.Parquet(path, found)
        if found[0].form == "audio":
            return file_source.Recordings(path, found)
        return text.Csv(path, found) if found[0].form == "csv" else text.JsonLines(path, found)
