"""The images and videos of rows, from a column or from conversations. They are loaded off the event
loop, and become data URIs in the row's request.
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
from penstock.batch.stages.media import Loader, loaded
from penstock.errors import PenstockError, RequestError
from penstock.openai.media.images import (
    VIDEO_PARTS,
    bitmap,
    data_in,
    data_uri,
    given_in,
    is_data_uri,
    is_pillow,
    kind_of,
)
from penstock.openai.media.parts import frames_uri, media_in
from penstock.parsing import decode_json

_SLOW_BYTES = 1 << 20
_URLS = ("http://", "https://")


class RowImages:
    """Loads the images and videos of rows from `column`, or from the parts of the conversations in
    the column `messages`.

    A value is an image or video, or a list of them. Each is bytes, a path, a data URI, a mapping
    with `bytes` or `path` (as in data sets of Hugging Face), or an image of Pillow's. Null stands
    for no image. A PDF becomes an image for each of its pages; a list in a video's part holds its
    frames. A URL goes to the engine, which may load it.
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
        values: dict[int, list[Any]] = {}
        for row in rows:
            found = [] if row.failure is not None else list(self._values(row))
            if any(value is not None for value in found):
                values[row.index] = found
                loading.append(row)
            else:
                ready.append(row)
        if not loading:
            yield rows
            return
        if ready:
            yield ready
        async for some in loaded(loading, lambda row: self._load(row, values[row.index])):
            yield some

    def close(self) -> None:
        for one in (self._loader, self._working):
            if one is not None:
                one.close()
        self._loader = self._working = None

    def _values(self, row: Row) -> Iterator[Any]:
        """The value that stands for each image or video of a row; a tuple holds frames."""
        value = (row.sound or {}).get(self._column or self._messages or "")
        if self._column is not None:
            images: list[Any] = list(value) if isinstance(value, list | tuple) else [value]
            yield from images
            return
        if isinstance(value, str):
            if not any(f'"{kind}' in value for kind in ("image", "input_image", "video")):
                return
            try:
                value = decode_json(value)
            except ValueError:
                return  # the form reports it
        if isinstance(value, list | tuple) and all(isinstance(item, Mapping) for item in value):
            for part in media_in(value):
                given, frames = given_in(part), part["type"] in VIDEO_PARTS
                yield tuple(given) if frames and isinstance(given, list) else given

    async def _load(self, row: Row, values: list[Any]) -> int:
        try:
            row.images = [await self._uris(value) for value in values]
        except PenstockError as error:
            row.failure, row.images = error, []
        return sum(len(uri) for uris in row.images for uri in uris)

    async def _uris(self, value: Any) -> list[str]:
        if value is None and self._column is not None:
            return []
        if isinstance(value, tuple):
            uris = [uri for frame in value for uri in await self._uris(frame)]
            if not all(map(is_data_uri, uris)):
                raise RequestError("a frame of a video is no URL, but an image", param="video")
            return [await asyncio.to_thread(lambda: frames_uri(data_in(u, "video") for u in uris))]
        if isinstance(value, str) and (is_data_uri(value) or value.startswith(_URLS)):
            return [value]
        if self._loader is None or self._working is None:
            self._loader, self._working = Loader(), Offload(os.cpu_count() or 1, in_place=False)
        if is_pillow(value):
            data: bytes = await self._working.submit(partial(bitmap, value))
        else:
            data = await self._loader.load(value, self._column or "image")
        if not data:
            raise RequestError("the image is empty", param=self._column or "image")
        if kind_of(data) == "application/pdf":
            pages = lazy.require("penstock.batch.stages.pdf", needed_by="A PDF in a row")
            files: list[bytes] = await self._working.submit(partial(pages.pages_of, data))
        else:
            files = [data]
        if sum(map(len, files)) < _SLOW_BYTES:
            return [data_uri(file) for file in files]
        made: list[str] = await self._working.submit(lambda: [data_uri(file) for file in files])
        return made
