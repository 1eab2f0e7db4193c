"""Prepares conversations with images: loads each image, and puts it into the message as a data URI
if it is whole.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from penstock import lazy
from penstock.batch.pipeline.offload import Offload
from penstock.batch.stages.base import StatefulStage
from penstock.batch.stages.media import Loader
from penstock.errors import RequestError
from penstock.openai.requests import check_messages

if TYPE_CHECKING:
    from penstock.batch.stages.images import PreparedImage

_IMAGE_PARTS = ("image_url", "image", "image_pil", "input_image")


class PrepareMultimodal:
    """Makes `messages` hold their images themselves, and lists them in `multimodal_data` and
    `multimodal_uuids`.
    """

    def __init__(
        self,
        *,
        content_format: str = "string",
        timeout_s: float = 30.0,
        max_bytes: int = 64 << 20,
        **_: Any,
    ) -> None:
        self._join_texts = content_format == "string"
        self._options: dict[str, Any] = {"timeout_s": timeout_s, "max_bytes": max_bytes}
        self._loader: Loader | None = None

    async def start(self) -> None:
        """Raises `MissingExtraError`."""
        self._images = lazy.require(
            "penstock.batch.stages.images", needed_by="The preparation of images"
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
        images: list[PreparedImage] = []
        prepared = [await self._message(message, images) for message in messages]
        return {
            "messages": prepared,
            "multimodal_data": {"image": [image.data for image in images]} if images else None,
            "multimodal_uuids": {"image": [image.uuid for image in images]} if images else None,
        }

    async def _message(
        self, message: dict[str, Any], images: list[PreparedImage]
    ) -> dict[str, Any]:
        content = message.get("content")
        if not isinstance(content, list):
            return message
        parts = [await self._part(part, images) for part in content]
        if self._join_texts and all(part.get("type") == "text" for part in parts):
            return {**message, "content": "".join(str(part.get("text", "")) for part in parts)}
        return {**message, "content": parts}

    async def _part(self, part: Mapping[str, Any], images: list[PreparedImage]) -> dict[str, Any]:
        if part.get("type") not in _IMAGE_PARTS:
            return {key: value for key, value in part.items() if value is not None}
        assert self._loader is not None
        # Columnar data gives every part every key; the empty ones were never there.
        given = next(
            (part[key] for key in ("image_url", "image", "image_pil") if part.get(key) is not None),
            None,
        )
        if isinstance(given, Mapping) and "url" in given:
            given = given["url"]
        if self._images.is_image(given):
            work = partial(self._images.written, given)
        else:
            work = partial(self._images.prepared, await self._loader.load(given, "image"))
        image: PreparedImage = await self._decoding.submit(work)
        images.append(image)
        return {"type": "image_url", "image_url": {"url": image.uri}}


class PrepareMultimodalStage(StatefulStage):
    """Loads the images of `messages` and puts them in as data URIs."""

    fn = PrepareMultimodal

    def get_required_input_keys(self) -> dict[str, str]:
        return {
            "messages": (
                "The conversation, in OpenAI's form; images by path, URL, data URI, as bytes or"
                " Pillow's."
            )
        }

    def shareable(self, row: Mapping[str, Any]) -> bool:
        return True
