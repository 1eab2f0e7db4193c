"""Images in messages: from the forms in which people have them to data URIs, the one form that
every engine, and every server, takes. Decodes nothing.
"""

from __future__ import annotations

from base64 import b64encode
from binascii import a2b_base64
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from io import BytesIO
from typing import Any
from urllib.parse import unquote_to_bytes

from penstock.errors import RequestError, UnsupportedError
from penstock.types import Message

Images = tuple[str | bytes, ...]
"""The images of a request, each a URI or the bytes of a file."""
IMAGE_PARTS = ("image_url", "image", "image_pil", "input_image")
_MEDIA = ("image", "audio", "video", "file", "embeds", "thinking", "tool_reference")
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
)


def kind_of(data: bytes) -> str:
    """The media type of a file by its first bytes; `UNKNOWN_KIND` if it is unknown."""
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


def part_with(uri: str) -> dict[str, Any]:
    """The part of a message with this image."""
    return {"type": "image_url", "image_url": {"url": uri}}


def given_in(part: Mapping[str, Any]) -> Any:
    """What a part says of its image: text, bytes, a mapping, an image of Pillow's; None: nothing.

    Columnar data gives every part every key; the empty ones were never there.
    """
    given = next((part[name] for name in IMAGE_PARTS if part.get(name) is not None), None)
    return given["url"] if isinstance(given, Mapping) and "url" in given else given


def image_at(part: Mapping[str, Any], param: str) -> str | bytes:
    """The image of a part, as it goes to an engine: a URI, or the bytes of a file. Raises
    `RequestError` naming `param`.
    """
    given = given_in(part)
    if isinstance(given, str) and given:
        return given
    if isinstance(given, bytes | bytearray | memoryview):
        return bytes(given)
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
                param="image",
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
        raise RequestError(f"the image cannot be decoded: {error}", param="image") from None
    return file.getvalue()


def images_in(messages: Sequence[Message]) -> list[Mapping[str, Any]]:
    """The parts of messages that hold images, in order."""
    return [
        part
        for message in messages
        if isinstance(content := message.get("content"), list)
        for part in content
        if isinstance(part, Mapping) and part.get("type") in IMAGE_PARTS
    ]


def with_images(messages: Sequence[Message], uris: Sequence[str]) -> list[Message]:
    """Messages whose image parts, in order, hold these URIs."""
    left = iter(uris)
    made: list[Message] = []
    for message in messages:
        content = message.get("content")
        if isinstance(content, list):
            content = [
                part_with(next(left))
                if isinstance(part, Mapping) and part.get("type") in IMAGE_PARTS
                else part
                for part in content
            ]
            message = {**message, "content": content}
        made.append(message)
    return made


def name_of(uri: str) -> str:
    """A short name for an image: the same for the same content."""
    return blake2b(uri.encode(errors="replace"), digest_size=16).hexdigest()


def seen(
    messages: list[Message], inputs: Sequence[str], engine: str
) -> tuple[list[Message], Images]:
    """Messages as templates take them, and their images in order. Raises `UnsupportedError` for
    what the engine does not read, of which a template would make words.
    """
    images: list[str | bytes] = []
    shown: list[Message] = []
    for number, message in enumerate(messages):
        content = message.get("content")
        for at, part in enumerate(content) if isinstance(content, list) else ():
            kind = str(part.get("type"))
            if not any(medium in kind for medium in _MEDIA):
                continue
            where = f"messages[{number}].content[{at}]"
            if kind not in IMAGE_PARTS or "image" not in inputs:
                reads = "texts and images" if "image" in inputs else "texts"
                raise UnsupportedError(
                    f"{where}: the {engine} engine reads {reads}, no '{kind}'",
                    param=where,
                )
            images.append(image_at(part, where))
            message = {**message, "content": [*message["content"]]}
            message["content"][at] = {"type": "image"}
        shown.append(message)
    return (shown, tuple(images)) if images else (messages, ())
