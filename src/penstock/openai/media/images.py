"""Images in messages: from the forms in which people have them to data URIs, the one form that
every engine, and every server, takes. Decodes nothing.
"""

from __future__ import annotations

from base64 import b64encode
from binascii import a2b_base64
from collections.abc import Mapping
from hashlib import blake2b
from io import BytesIO
from typing import Any
from urllib.parse import unquote_to_bytes

from penstock.errors import RequestError

Images = tuple[str | bytes, ...]
"""The images of a request, each a URI or the bytes of a file."""
IMAGE_PARTS = ("image_url", "image", "image_pil", "input_image")
VIDEO_PARTS = ("video_url", "video")
UNKNOWN_KIND = "application/octet-stream"
_BEGINNINGS = (
    (b"\x89PNG", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF8", "image/gif"),
    (b"RIFF", "image/webp"),
    (b"BM", "image/bmp"),
    (b"II*\0", "image/tiff"),
    (b"MM\0*", "image/tiff"),
    (b"%PDF-", "application/pdf"),
    (b"\x1aE\xdf\xa3", "video/webm"),
)
_STILL = (b"hei", b"hev", b"mif", b"msf", b"avi")
"""Brands of images in the container of MP4."""


def kind_of(data: bytes) -> str:
    """The media type of a file by its first bytes; `UNKNOWN_KIND` if it is unknown."""
    if data[4:8] == b"ftyp" and data[8:11] not in _STILL:
        return "video/mp4"
    if data[:4] == b"RIFF" and data[8:12] == b"AVI ":
        return "video/x-msvideo"
    known = (kind for beginning, kind in _BEGINNINGS if data.startswith(beginning))
    return next(known, UNKNOWN_KIND)


def data_uri(data: bytes) -> str:
    """A file as a data URI."""
    return f"data:{kind_of(data)};base64,{b64encode(data).decode()}"


def is_data_uri(text: str) -> bool:
    """Whether it is a data URI, whose scheme may have capitals."""
    return text[:5].lower() == "data:"


def content_of(uri: str) -> bytes:
    """The bytes in a data URI, whose base64 may have line breaks, or lack its padding. Raises
    `ValueError` if it is damaged.
    """
    head, _, body = uri.partition(",")
    if not _is_base64(head):
        return unquote_to_bytes(body)
    try:
        return a2b_base64(body, strict_mode=True)
    except ValueError:
        plain = b"".join(unquote_to_bytes(body).split())
        return a2b_base64(plain + b"=" * (-len(plain) % 4), strict_mode=True)


def _is_base64(head: str) -> bool:
    return head.rpartition(";")[2].strip().lower() == "base64"


def bytes_in(uri: str, param: str) -> bytes:
    """The bytes in a data URI. Raises `RequestError` for `param` if it has none or is damaged."""
    try:
        data = content_of(uri)
    except ValueError as error:
        raise RequestError(f"{param}: the data URI is no base64: {error}", param=param) from None
    if not data:
        raise RequestError(f"{param}: the data URI has no data", param=param)
    return data


def data_in(uri: str, param: str) -> bytes:
    """The bytes of an image in a data URI. Raises `RequestError` for `param` if it is damaged."""
    data = bytes_in(uri, param)
    head = uri.partition(",")[0]
    if not _is_base64(head) and kind_of(data) == UNKNOWN_KIND:
        raise RequestError(
            f"{param}: the data URI '{head[:50]},…' is not marked as base64, and holds no"
            " image: it should begin like data:image/png;base64,",
            param=param,
        )
    return data


def part_with(uri: str, medium: str = "") -> dict[str, Any]:
    """The part of a message with this image or video; by default, a data URI tells which."""
    name = f"{medium or ('video' if uri[:11].lower() == 'data:video/' else 'image')}_url"
    return {"type": name, name: {"url": uri}}


def given_in(part: Mapping[str, Any]) -> Any:
    """What a part says of its image or video: text, bytes, a mapping, an image of Pillow's, a list
    of frames; None: nothing.

    Columnar data gives every part every key; the empty ones were never there.
    """
    names = (*IMAGE_PARTS, *VIDEO_PARTS)
    given = next((part[name] for name in names if part.get(name) is not None), None)
    return given["url"] if isinstance(given, Mapping) and "url" in given else given


def as_is(given: Any) -> str | bytes | None:
    """What a part says, if an engine takes it so: a URI, or the bytes of a file."""
    if isinstance(given, bytes | bytearray | memoryview):
        return bytes(given)
    return given if isinstance(given, str) and given else None


def image_at(part: Mapping[str, Any], param: str) -> str | bytes:
    """The image of a part, as it goes to an engine: a URI, or the bytes of a file. Raises
    `RequestError` naming `param`.
    """
    given = given_in(part)
    if (ready := as_is(given)) is not None:
        return ready
    if is_pillow(given):
        return bitmap(given)
    raise RequestError(
        f"{param}: a part of type '{part.get('type')}' needs an image_url with a url, or the bytes"
        " of an image",
        param=param,
    )


def is_pillow(value: Any) -> bool:
    """Whether it is an image of Pillow's, which is not imported to find out."""
    return hasattr(value, "convert") and hasattr(value, "save")


def of_8_bits(image: Any) -> Any:
    """An image of Pillow's, one of 16 bits in 8: Pillow alone makes white of all above 255. Raises
    `RequestError` for wider pixels of other values than 0 to 255: nobody knows what is white.
    """
    if image.mode in ("I", "F"):
        least, most = image.getextrema()
        if not 0 <= least <= most <= 255 or (image.mode == "F" and 0 < most <= 1):
            raise RequestError(
                f"the image's pixels go from {least:g} to {most:g}: bring them to 8 bits, from 0 to"
                " 255",
                param="messages",
            )
    if not image.mode.startswith("I;16"):
        return image
    return image.convert("I").point(lambda value: value / 256).convert("L")


def bitmap(image: Any) -> bytes:
    """An image of Pillow's as the file that is made fastest. Raises `RequestError`."""
    file = BytesIO()
    try:
        plain = of_8_bits(image)
        plain.convert("RGBA" if "A" in plain.getbands() else "RGB").save(file, "BMP")
    except RequestError:
        raise
    except Exception as error:  # it may be read only now, and decoders meet damage in many ways
        raise RequestError(f"the image cannot be decoded: {error}", param="messages") from None
    return file.getvalue()


def name_of(uri: str) -> str:
    """A short name for an image: the same for the same content."""
    return blake2b(uri.encode(errors="replace"), digest_size=16).hexdigest()
