"""The files of a request's images: from its data URIs, and from the web where that is allowed."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from penstock.engines.openvino.options import OpenVINOOptions
from penstock.errors import RequestError
from penstock.http.standard import content_at
from penstock.openai.image_parts import data_in, is_data_uri

_PARAM = "messages"
_LARGE = 1 << 18
"""Characters that are decoded in a thread: the event loop has others to serve."""


async def image_files(images: Sequence[str | bytes], options: OpenVINOOptions) -> tuple[bytes, ...]:
    """The bytes of each image's file. Raises `RequestError` for too many images or bytes, a damaged
    data URI, a path, and a URL that is not loaded.
    """
    if len(images) > options.max_images:
        raise RequestError(
            f"the messages have {len(images)} images, and max_images is {options.max_images}",
            param=_PARAM,
        )
    files: list[bytes] = []
    for image in images:
        files.append(await _file(image, options))
        if sum(map(len, files)) > options.max_image_bytes:
            raise RequestError(
                f"the images have more than the {options.max_image_bytes:,} bytes of"
                " max_image_bytes",
                param=_PARAM,
            )
    return tuple(files)


async def _file(image: str | bytes, options: OpenVINOOptions) -> bytes:
    if isinstance(image, bytes):
        return image
    if is_data_uri(image):
        if len(image) > 2 * options.max_image_bytes:
            raise RequestError(
                f"an image has more than the {options.max_image_bytes:,} bytes of max_image_bytes",
                param=_PARAM,
            )
        if len(image) < _LARGE:
            return data_in(image, _PARAM)
        return await asyncio.to_thread(data_in, image, _PARAM)
    shown = f"'{image[:60]}'"
    if not image.startswith(("http://", "https://")):
        raise RequestError(
            f"the image {shown} is no data URI: images come in their request, as"
            " data:image/png;base64,…",
            param=_PARAM,
        )
    if not options.image_urls:
        raise RequestError(
            f"the image {shown} is not loaded: send it as a data URI, or allow URLs with"
            " engine_kwargs {image_urls: true}",
            param=_PARAM,
        )
    try:
        async with asyncio.timeout(options.image_timeout_s):
            data = await asyncio.to_thread(
                content_at, image, options.image_timeout_s, options.max_image_bytes + 1
            )
    except TimeoutError:
        raise RequestError(
            f"the image {shown} was not loaded within {options.image_timeout_s:g} s", param=_PARAM
        ) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise RequestError(f"the image {shown} cannot be loaded: {reason}", param=_PARAM) from None
    return data
