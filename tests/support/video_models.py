"""A tiny model with random weights that sees videos, converted already, and videos for it.

`tools/make_video_model.py` made `video_model.zip`.
"""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import av
import numpy as np

from penstock.openai.media.images import data_uri
from vision_models import vision_model

CODERS = {"mp4": "mpeg4", "matroska": "mpeg4", "webm": "libvpx", "avi": "mpeg4", "gif": "gif"}


def video_model(folder: Path) -> Path:
    """The directory of the model, made in `folder`."""
    return vision_model(folder, "video")


def shades(seed: int, frames: int) -> Sequence[int]:
    """The gray of each frame of `video_file`."""
    return [(40 * seed + 7 * number) % 200 + 28 for number in range(frames)]


def video_file(
    seed: int, frames: int = 24, form: str = "mp4", size: tuple[int, int] = (64, 48), rate: int = 10
) -> bytes:
    """The bytes of a file with a video: its left half has the gray of the frame, its right half is
    black.
    """
    file = BytesIO()
    width, height = size
    with av.open(file, "w", format=form) as out:
        stream: Any = out.add_stream(CODERS[form], rate=rate)
        stream.width, stream.height = size
        stream.pix_fmt = "rgb8" if form == "gif" else "yuv420p"
        for shade in shades(seed, frames):
            pixels = np.zeros((height, width, 3), np.uint8)
            pixels[:, : width // 2] = shade
            out.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        out.mux(stream.encode(None))
    return file.getvalue()


def video_part(data: bytes) -> dict[str, Any]:
    """A part of a message in vLLM's form, with a video by its file."""
    return {"type": "video_url", "video_url": {"url": data_uri(data)}}
