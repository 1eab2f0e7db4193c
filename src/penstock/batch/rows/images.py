"""The images of rows: a column's, and those in conversations. They are loaded off the event loop,
and become data URIs in the row's request.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator, Mapping
from functools import partial
from typing import Any

from penstock import lazy
from penstock.batch.pipeline.offload import Offload
from penstock.batch.rows.row import Row
from penstock.batch.stages.media import Loader
from penstock.errors import PenstockError, RequestError
from penstock.openai.image_parts import bitmap, data_uri, given_in, images_in, is_pillow
from penstock.parsing import decode_json

_AT_ONCE_BYTES = 16 << 20
"""Rows go on together that have so many bytes of images."""
_SLOW_BYTES = 1 << 20
_AS_THEY_ARE = ("data:", "http://", "https://")
PDF = b"%PDF-"


class RowImages:
    """Loads the images of rows from `column`, or from the parts of the conversations in the column
    `messages`.

    A value is one image or a list of them: bytes, a path, a data URI, a mapping with `bytes` or
    `path` (as data sets of Hugging Face have it), or an image of Pillow's. Null is none. A PDF is
    an image for each of its pages. A URL goes to the engine, which may load it.
    """

    def __init__(self, column: str | None, messages: str | None) -> None:
        self._column = column
        self._messages = messages
        self._loader: Loader | None = None
        self._working: Offload | None = None

    async def load(self, rows: list[Row]) -> AsyncIterator[list[Row]]:
        """The rows in lists, with their `images`, or with the `failure` to load one."""
        ready: list[Row] = []
        loading: list[Row] = []
        for row in rows:
            (loading if self._has_images(row) else ready).append(row)
        if not loading:
            yield rows
            return
        if ready:
            yield ready
        size, some = 0, list[Row]()
        for number, row in enumerate(loading):
            if row.images is None:  # else it came with the group before it
                group = loading[number : number + 8]
                await asyncio.gather(*map(self._load, group))
            size += sum(map(len, row.images or ()))
            some.append(row)
            if size >= _AT_ONCE_BYTES:
                yield some
                size, some = 0, []
        if some:
            yield some

    def close(self) -> None:
        for one in (self._loader, self._working):
            if one is not None:
                one.close()
        self._loader = self._working = None

    def _has_images(self, row: Row) -> bool:
        return row.failure is None and any(value is not None for value in self._values(row))

    def _values(self, row: Row) -> Iterator[Any]:
        """The value that stands for each image of a row."""
        value = (row.values or {}).get(self._column or self._messages or "")
        if self._column is not None:
            images: list[Any] = list(value) if isinstance(value, list | tuple) else [value]
            yield from images
            return
        if isinstance(value, str):
            if '"image' not in value and '"input_image' not in value:
                return
            try:
                value = decode_json(value)
            except ValueError:
                return  # the form says so
        if isinstance(value, list) and all(isinstance(item, Mapping) for item in value):
            yield from map(given_in, images_in(value))

    async def _load(self, row: Row) -> None:
        try:
            row.images = tuple(
                [uri for value in self._values(row) for uri in await self._uris(value)]
            )
        except PenstockError as error:
            row.failure, row.images = error, ()
        row.nbytes += sum(map(len, row.images))

    async def _uris(self, value: Any) -> list[str]:
        if value is None and self._column is not None:
            return []
        if isinstance(value, str) and value.startswith(_AS_THEY_ARE):
            return [value]
        if self._loader is None or self._working is None:
            self._loader, self._working = Loader(), Offload(os.cpu_count() or 1, in_place=False)
        if is_pillow(value):
            data: bytes = await self._working.submit(partial(bitmap, value))
        else:
            data = await self._loader.load(value, self._column or "image")
        if data.startswith(PDF):
            pages = lazy.require("penstock.batch.stages.pdf", needed_by="A PDF in a row")
            files: list[bytes] = await self._working.submit(partial(pages.pages_of, data))
        else:
            files = [data]
        if not data:
            raise RequestError("the image is empty", param=self._column or "image")
        if sum(map(len, files)) < _SLOW_BYTES:
            return [data_uri(file) for file in files]
        made: list[str] = await self._working.submit(lambda: [data_uri(file) for file in files])
        return made
