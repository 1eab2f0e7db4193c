"""Decodes images, so that a damaged one fails its row and not the engine. Home of Pillow.

The size is read from a file's header and checked before anything is decoded: a file of some
kilobytes can hold gigabytes of pixels.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable
from hashlib import blake2b
from io import BytesIO
from typing import Any, NamedTuple, cast

from PIL import Image, ImageOps, UnidentifiedImageError

from penstock.errors import RequestError, text_of
from penstock.openai.media.images import of_8_bits

FORMS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF")
"""What engines take. Pillow knows more, some of which run programs."""
MAX_PIXELS = 1 << 26
"""The default of the most pixels that are decoded: 192 MiB of them."""


class PreparedImage(NamedTuple):
    """An image's file as it came, as a data URI, and a name for its content."""

    data: bytes
    uri: str
    uuid: str


def prepared(data: bytes) -> PreparedImage:
    """An image, decoded in full, which may take long. Raises `RequestError` if it cannot be, or if
    it has too many pixels.
    """
    check_pixels([data], MAX_PIXELS)
    with _opened(data) as image:
        kind = Image.MIME[str(image.format)]
        try:
            image.load()  # what is cut short shows only here
        except Exception as error:  # decoders meet damage in many ways
            raise _undecodable(error) from None
    return _prepared(data, kind)


def check_pixels(files: Iterable[bytes], most: int) -> list[tuple[int, int]]:
    """The width and height of each image, from their headers alone. Raises `RequestError` for what
    is no image, and if all of them together have more than `most` pixels.
    """
    sizes: list[tuple[int, int]] = []
    for data in files:
        with _opened(data) as image:
            sizes.append(image.size)
    total = sum(width * height for width, height in sizes)
    if total > most:
        what = "the image has" if len(sizes) == 1 else f"the {len(sizes)} images have"
        raise RequestError(
            f"{what} {total:,} pixels, more than the {most:,} that are allowed", param="messages"
        )
    return sizes


def decoded(data: bytes) -> Image.Image:
    """An image in RGB, upright as its camera says, on white where it is transparent. May take long.
    Raises `RequestError`.
    """
    with _opened(data) as image:
        try:
            upright: Image.Image = ImageOps.exif_transpose(image)
            if upright.mode in ("RGBA", "LA", "PA") or "transparency" in upright.info:
                above = upright.convert("RGBA")
                white = Image.new("RGBA", above.size, "white")
                return Image.alpha_composite(white, above).convert("RGB")
            return cast(Image.Image, of_8_bits(upright)).convert("RGB")
        except Exception as error:  # decoders meet damage in many ways
            raise _undecodable(error) from None


def _opened(data: bytes) -> Image.Image:
    try:
        return Image.open(BytesIO(data), formats=FORMS)
    except UnidentifiedImageError:
        raise RequestError(
            f"these bytes are no image of a known form ({', '.join(FORMS)})", param="messages"
        ) from None
    except Exception as error:
        raise _undecodable(error) from None


def is_image(value: Any) -> bool:
    """Whether it is an image of Pillow's, opened by the caller."""
    return isinstance(value, Image.Image)


def written(image: Image.Image) -> PreparedImage:
    """An image of Pillow's as a PNG file, which may take long. Raises `RequestError`."""
    file = BytesIO()
    try:
        plain = (
            image
            if image.mode in ("1", "L", "LA", "P", "RGB", "RGBA")
            else of_8_bits(image).convert("RGB")
        )
        plain.save(file, "PNG")
    except Exception as error:  # it may be read only now, and decoders meet damage in many ways
        raise _undecodable(error) from None
    return _prepared(file.getvalue(), "image/png")


def _undecodable(error: Exception) -> RequestError:
    if isinstance(error, RequestError):
        return error
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return RequestError(f"the image has more than {MAX_PIXELS:,} pixels", param="messages")
    return RequestError(
        f"the image cannot be decoded, it is damaged or cut off ({text_of(error)})",
        param="messages",
    )


def _prepared(data: bytes, kind: str) -> PreparedImage:
    return PreparedImage(
        data,
        f"data:{kind};base64,{b64encode(data).decode()}",
        blake2b(data, digest_size=16).hexdigest(),
    )
