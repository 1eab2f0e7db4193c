"""Loads the media of rows (images, videos and recordings, by path, URL, data URI or as bytes) off
the event loop; and the stage that puts images and videos into the messages of a conversation.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import unquote

from penstock import lazy
from penstock.batch.pipeline.offload import Offload
from penstock.batch.rows.row import Row
from penstock.batch.stages.base import StatefulStage
from penstock.errors import RequestError
from penstock.openai.media.images import (
    VIDEO_PARTS,
    content_of,
    data_uri,
    given_in,
    is_data_uri,
    name_of,
    part_with,
)
from penstock.openai.media.parts import MEDIA_PARTS, frames_uri
from penstock.openai.requests import check_messages

if TYPE_CHECKING:
    from penstock.engines.media.images import PreparedImage

_AT_ONCE = 8
_AT_ONCE_BYTES = 16 << 20


class Loader:
    """Loads media off the event loop, a few at a time. Make it inside a running event loop.

    `timeout_s` bounds the load of one source, from its turn on, `max_bytes` its size. If `folder`
    is given, files of this machine must be below it.
    """

    def __init__(
        self,
        *,
        threads: int = 8,
        timeout_s: float = 30.0,
        max_bytes: int = 64 << 20,
        folder: str | None = None,
    ) -> None:
        # Never in place: the next disk or server may be slow, however fast the last ones were.
        self._offload = Offload(threads, in_place=False)
        self._turns = asyncio.Semaphore(threads)
        self._timeout = timeout_s
        self._most = max_bytes
        self._folder = folder

    async def load(self, source: Any, what: str) -> bytes:
        """The bytes of `source`: bytes, a path, a URL, a data URI, or a mapping with `bytes` or
        `path` (as data sets of Hugging Face have it). Raises `RequestError` naming `what`.
        """
        if isinstance(source, Mapping):
            source = source.get("bytes") or source.get("path") or source.get("url")
        if isinstance(source, bytes | bytearray | memoryview):
            return bytes(source)
        if not isinstance(source, str | os.PathLike):
            raise RequestError(
                f"{what} must be bytes, a path or a URL, not a {type(source).__name__}", param=what
            )
        try:
            async with self._turns, asyncio.timeout(self._timeout):
                data: bytes = await self._offload.submit(partial(self._read, os.fspath(source)))
        except TimeoutError:
            raise RequestError(
                f"{what} {_short(source)} was not loaded within {self._timeout:g} s", param=what
            ) from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
            raise RequestError(
                f"{what} {_short(source)} cannot be loaded: {reason}", param=what
            ) from None
        if len(data) > self._most:
            raise RequestError(
                f"{what} {_short(source)} has more than {self._most:,} bytes", param=what
            )
        return data

    def close(self) -> None:
        self._offload.close()

    def _read(self, source: str) -> bytes:
        if is_data_uri(source):
            return content_of(source)
        if source.startswith(("http://", "https://")):
            from penstock.http.standard import content_at  # late: most jobs read no URL

            return content_at(source, self._timeout, self._most + 1)
        if source.startswith("file://"):
            source = unquote(source.removeprefix("file://"))
        elif "://" in source:
            if self._folder is not None:  # fsspec has schemes and chains that lead to files here
                scheme = source.partition("://")[0]
                raise ValueError(f"its scheme is none of file, http, https and data, but {scheme}")
            import fsspec

            with fsspec.open(source, "rb").open() as file:
                return bytes(file.read(self._most + 1))
        if self._folder is not None:
            source = os.path.realpath(source)
            if not self._folder:
                raise ValueError("allowed_local_media_path is empty: no local file is read")
            if not Path(source).is_relative_to(os.path.realpath(self._folder)):
                raise ValueError(f"it is not below '{self._folder}'")
        with open(source, "rb") as local:
            return local.read(self._most + 1)


async def loaded(
    rows: Sequence[Row], load: Callable[[Row], Awaitable[int]]
) -> AsyncIterator[list[Row]]:
    """The rows, loaded eight at a time, in lists of up to 16 MiB of media. `load` loads the media
    of a row and returns their size, which is added to the row's.
    """
    size, some = 0, list[Row]()
    for number in range(0, len(rows), _AT_ONCE):
        group = rows[number : number + _AT_ONCE]
        for row, nbytes in zip(group, await asyncio.gather(*map(load, group)), strict=True):
            row.nbytes += nbytes
            size += nbytes
            some.append(row)
            if size >= _AT_ONCE_BYTES:
                yield some
                size, some = 0, []
    if some:
        yield some


class PrepareMultimodal:
    """Puts images and videos into `messages`. As Ray's stage does, it also lists them in
    `multimodal_data`, and hashes of their content in `multimodal_uuids`, for the user: no later
    stage reads these columns.
    """

    def __init__(
        self,
        *,
        content_format: str = "string",
        timeout_s: float = 30.0,
        max_bytes: int = 64 << 20,
        folder: str | None = None,
        **_: Any,
    ) -> None:
        self._join_texts = content_format == "string"
        self._options: dict[str, Any] = {
            "timeout_s": timeout_s,
            "max_bytes": max_bytes,
            "folder": folder,
        }
        self._loader: Loader | None = None

    async def start(self) -> None:
        """Load Pillow. Raises `MissingExtraError` where it is not installed."""
        self._images = lazy.require(
            "penstock.engines.media.images", needed_by="The preparation of images"
        )
        self._loader = Loader(**self._options)
        self._decoding = Offload(os.cpu_count() or 1)

    async def stop(self) -> None:
        if self._loader is not None:
            self._loader.close()
            self._decoding.close()

    async def process(self, row: dict[str, Any]) -> dict[str, Any]:
        messages = row.get("messages")
        if messages is None:
            raise RequestError("the row has no column 'messages'", param="messages")
        if hasattr(messages, "tolist"):
            messages = messages.tolist()
        if not isinstance(messages, list) or not all(
            isinstance(message, dict) for message in messages
        ):
            raise RequestError("column 'messages' holds no list of messages", param="messages")
        check_messages(messages)
        data: dict[str, list[Any]] = {}
        names: dict[str, list[str]] = {}
        prepared = [await self._message(message, data, names) for message in messages]
        return {
            "messages": prepared,
            "multimodal_data": data or None,
            "multimodal_uuids": names or None,
        }

    async def _message(
        self, message: dict[str, Any], data: dict[str, list[Any]], names: dict[str, list[str]]
    ) -> dict[str, Any]:
        content = message.get("content")
        if not isinstance(content, list):
            return message
        parts = [await self._part(part, data, names) for part in content]
        if self._join_texts and all(part.get("type") == "text" for part in parts):
            return {**message, "content": "".join(str(part.get("text", "")) for part in parts)}
        return {**message, "content": parts}

    async def _part(
        self, part: Mapping[str, Any], data: dict[str, list[Any]], names: dict[str, list[str]]
    ) -> dict[str, Any]:
        if part.get("type") not in MEDIA_PARTS:
            return {key: value for key, value in part.items() if value is not None}
        given = given_in(part)
        if part["type"] in VIDEO_PARTS:
            medium, (content, uri, name) = "video", await self._video(given)
        else:
            medium, (content, uri, name) = "image", await self._image(given)
        data.setdefault(medium, []).append(content)
        names.setdefault(medium, []).append(name)
        return part_with(uri, medium)

    async def _image(self, given: Any) -> PreparedImage:
        assert self._loader is not None
        if self._images.is_image(given):
            work = partial(self._images.written, given)
        else:
            work = partial(self._images.prepared, await self._loader.load(given, "image"))
        image: PreparedImage = await self._decoding.submit(work)
        return image

    async def _video(self, given: Any) -> tuple[Any, str, str]:
        """A video goes to the engine undecoded; a list of frames is loaded as images."""
        assert self._loader is not None
        if isinstance(given, list | tuple):
            frames = [(await self._image(frame)).data for frame in given]
            uri: str = await self._decoding.submit(partial(frames_uri, frames))
            return frames, uri, name_of(uri)
        content = await self._loader.load(given, "video")
        uri = await self._decoding.submit(partial(data_uri, content))
        return content, uri, name_of(uri)


class PrepareMultimodalStage(StatefulStage):
    """Loads the images and videos of `messages` and puts them in as data URIs."""

    fn = PrepareMultimodal
    _required: ClassVar[Mapping[str, str]] = {
        "messages": (
            "The conversation, in OpenAI's form; images and videos by path, URL, data URI, as bytes"
            " or Pillow's."
        )
    }
    _shareable = True


def _short(source: object) -> str:
    text = str(source)
    return f"'{text}'" if len(text) <= 96 else f"'{text[:60]}…'"
