"""Decodes images, so that a damaged one fails its row and not the engine. Home of Pillow."""

from __future__ import annotations

from base64 import b64encode
from hashlib import blake2b
from io import BytesIO
from typing import Any, NamedTuple

from PIL import Image, UnidentifiedImageError

from penstock.errors import RequestError, text_of

FORMS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF")
"""What engines take. Pillow knows more, some of which run programs."""


class PreparedImage(NamedTuple):
    """An image's file as it came, as a data URI, and a name for its content."""

    data: bytes
    uri: str
    uuid: str


def prepared(data: bytes) -> PreparedImage:
    """An image, decoded in full, which may take long. Raises `RequestError` if it cannot be."""
    try:
        with Image.open(BytesIO(data), formats=FORMS) as image:
            image.load()  # what is cut short shows only here
            kind = Image.MIME[str(image.format)]
    except UnidentifiedImageError:
        raise RequestError(
            f"these bytes are no image of a known form ({', '.join(FORMS)})", param="image"
        ) from None
    except Exception as error:  # decoders meet damage in many ways
        raise _undecodable(error) from None
    return _prepared(data, kind)


def is_image(value: Any) -> bool:
    """Whether it is an image of Pillow's, opened by the caller."""
    return isinstance(value, Image.Image)


def written(image: Image.Image) -> PreparedImage:
    """An image of Pillow's as a PNG file, which may take long. Raises `RequestError`."""
    file = BytesIO()
    try:
        plain = (
            image if image.mode in ("1", "L", "LA", "P", "RGB", "RGBA") else image.convert("RGB")
        )
        plain.save(file, "PNG")
    except Exception as error:  # it may be read only now, and decoders meet damage in many ways
        raise _undecodable(error) from None
    return _prepared(file.getvalue(), "image/png")


def _undecodable(error: Exception) -> RequestError:
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return RequestError(
            f"the image has more than {Image.MAX_IMAGE_PIXELS:,} pixels", param="image"
        )
    return RequestError(
        f"the image cannot be decoded, it is damaged or cut off ({text_of(error)})", param="image"
    )


def _prepared(data: bytes, kind: str) -> PreparedImage:
    return PreparedImage(
        data,
        f"data:{kind};base64,{b64encode(data).decode()}",
        blake2b(data, digest_size=16).hexdigest(),
    )
