"""The files of a request's images and videos: from its data URIs, and from the web where that is
allowed.
"""

from __future__ import annotations

import asyncio

from penstock.engines.openvino.options import OpenVINOOptions
from penstock.errors import RequestError
from penstock.http.standard import content_at
from penstock.openai.media.images import Images, data_in, is_data_uri
from penstock.openai.media.parts import Videos, files_in

_PARAM = "messages"
_LARGE = 1 << 18
"""Characters that are decoded in a thread: the event loop has others to serve."""


async def media_files(
    images: Images, videos: Images, options: OpenVINOOptions
) -> tuple[tuple[bytes, ...], Videos]:
    """The bytes of each image's file, and of each video's, or those of its frames. Raises
    `RequestError` for too many of them or too many bytes, a damaged data URI, a path, and a URL
    that is not loaded.
    """
    if len(images) + len(videos) > options.max_images:
        what = " and ".join(
            f"{len(some)} {name}" for some, name in ((images, "images"), (videos, "videos")) if some
        )
        raise RequestError(
            f"the messages have {what}, and max_images is {options.max_images}", param=_PARAM
        )
    size = 0
    found: list[tuple[bytes, ...]] = []
    for number, source in enumerate((*images, *videos)):
        medium = "video" if number >= len(images) else "image"
        found.append(await _files(source, medium, options))
        size += sum(map(len, found[-1]))
        if size > options.max_image_bytes:
            raise RequestError(
                f"the images and videos have more than the {options.max_image_bytes:,} bytes of"
                " max_image_bytes",
                param=_PARAM,
            )
    return tuple(file for (file,) in found[: len(images)]), tuple(found[len(images) :])


async def _files(source: str | bytes, medium: str, options: OpenVINOOptions) -> tuple[bytes, ...]:
    if isinstance(source, bytes):
        return (source,)
    if is_data_uri(source):
        if len(source) > 2 * options.max_image_bytes:
            raise RequestError(
                f"the {medium} has more than the {options.max_image_bytes:,} bytes of"
                " max_image_bytes",
                param=_PARAM,
            )
        if len(source) < _LARGE:
            return _read(source, medium)
        return await asyncio.to_thread(_read, source, medium)
    shown = f"'{source[:60]}'"
    if not source.startswith(("http://", "https://")):
        example = "video/mp4" if medium == "video" else "image/png"
        raise RequestError(
            f"the {medium} {shown} is no data URI: {medium}s come in their request, as"
            f" data:{example};base64,…",
            param=_PARAM,
        )
    if not options.image_urls:
        raise RequestError(
            f"the {medium} {shown} is not loaded: send it as a data URI, or allow URLs with"
            " engine_kwargs {image_urls: true}",
            param=_PARAM,
        )
    try:
        async with asyncio.timeout(options.image_timeout_s):
            data = await asyncio.to_thread(
                content_at, source, options.image_timeout_s, options.max_image_bytes + 1
            )
    except TimeoutError:
        raise RequestError(
            f"the {medium} {shown} was not loaded within {options.image_timeout_s:g} s",
            param=_PARAM,
        ) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise RequestError(
            f"the {medium} {shown} cannot be loaded: {reason}", param=_PARAM
        ) from None
    return (data,)


def _read(uri: str, medium: str) -> tuple[bytes, ...]:
    return files_in(uri, _PARAM) if medium == "video" else (data_in(uri, _PARAM),)
