"""Tiny models that see, with random weights, converted already, and images for them.

They were made by `make_vision_model.py` (a LLaVA), `make_video_model.py` (a Qwen2-VL) and
`make_image_embedding_model.py` (a Qwen3-VL-Embedding), in `tools/`.
"""

from __future__ import annotations

import random
import struct
import zipfile
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from penstock.openai.media.images import data_uri


def vision_model(folder: Path, name: str = "vision") -> Path:
    """The directory of the model, made in `folder`."""
    path = folder / name
    with zipfile.ZipFile(Path(__file__).with_name(f"{name}_model.zip")) as archive:
        archive.extractall(path)
    return path


def image_embedding_model(folder: Path) -> Path:
    """The directory of a model that embeds images and texts, made in `folder`."""
    return vision_model(folder, "image_embedding")


def picture(seed: int, size: tuple[int, int] = (48, 40)) -> Image.Image:
    """An image of Pillow's: noise, so that it does not compress."""
    width, height = size
    pixels = random.Random(seed).randbytes(3 * width * height)
    return Image.frombytes("RGB", size, pixels)


def image_file(seed: int, form: str = "PNG", size: tuple[int, int] = (48, 40)) -> bytes:
    """The bytes of a file with such an image."""
    file = BytesIO()
    picture(seed, size).save(file, form)
    return file.getvalue()


def image_part(data: bytes) -> dict[str, Any]:
    """A part of a message in OpenAI's form, with an image by its file."""
    return {"type": "image_url", "image_url": {"url": data_uri(data)}}


def bomb(side: int = 40_000) -> bytes:
    """A PNG of some kilobytes with 1.6 gigapixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    row = zlib.compressobj(9)
    data = b"".join(row.compress(bytes(side + 1)) for _ in range(64)) + row.flush()
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )
