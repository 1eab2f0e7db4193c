"""Decodes videos to a few frames each, spread evenly. Home of PyAV for pictures.

A video's form is told by its first bytes, and FFmpeg opens it as nothing else: some of the forms
that it knows load further files. Sizes are read from the header, and frames counted, before
anything is decoded.
"""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import Any, NamedTuple

import av
import numpy as np
from numpy.typing import NDArray

from penstock.engines.media.images import check_pixels, decoded as decoded_image
from penstock.errors import RequestError, text_of
from penstock.openai.media.images import kind_of

_FORMS = {
    **{"video/mp4": "mp4", "video/webm": "matroska"},
    **{"video/x-msvideo": "avi", "image/gif": "gif"},
}
_LISTED_RATE = 2.0
"""Frames a second of a list of frames, which tells none: that of Qwen's tools."""
_ANY_FRAME = 1 << 23
"""Pixels that a frame may have, whatever the header says: some recordings change their size. Larger
frames may have twice the pixels of the header, as coders fill up their sides.
"""


class Clip(NamedTuple):
    """Frames of a video, uint8 [frames, height, width, 3], and how many there are a second."""

    frames: NDArray[np.uint8]
    rate: float


def check_frames(
    videos: Sequence[Sequence[bytes]], frames: int, most: int
) -> list[tuple[int, int, int]]:
    """The width and the height of each video, and how many of its frames are shown: `frames` at
    most, and no more than its header states, if it does. Raises `RequestError` for what is no
    video, and if the frames that are shown of all have more than `most` pixels.
    """
    sizes: list[tuple[int, int, int]] = []
    for files in videos:
        if _is_file(files):
            with _opened(files[0], most) as file:
                (width, height), count = _size(file), file.streams.video[0].frames
        else:
            # One is enough: all must have its size.
            ((width, height),), count = check_pixels(files[:1], most), len(files)
        sizes.append((width, height, min(count or frames, frames)))
    total = sum(width * height * count for width, height, count in sizes)
    if total > most:
        raise _bad(
            f"the frames that are shown of it have {total:,} pixels, more than the {most:,} that"
            " are allowed"
        )
    return sizes


def clip_of(files: Sequence[bytes], frames: int, most: int) -> Clip:
    """Up to `frames` frames of a video. May take long. `most` are the pixels that its frames may
    have all together, shown or not. Raises `RequestError`.
    """
    if not _is_file(files):
        chosen = _chosen(len(files), frames)
        pixels = check_pixels([files[at] for at in chosen], most)
        if len(set(pixels)) > 1:
            raise _bad("its frames have different sizes")
        images = [np.asarray(decoded_image(files[at])) for at in chosen]
        return Clip(np.stack(images), _LISTED_RATE * len(chosen) / len(files))
    with _opened(files[0], most) as file:
        width, height = _size(file)
        count = sum(packet.size > 0 for packet in _each(file.demux(file.streams.video[0])))
    if width * height * count > most:
        raise _bad(
            f"its {count:,} frames of {width} × {height} have {width * height * count:,} pixels,"
            f" more than the {most:,} of max_video_pixels"
        )
    with _opened(files[0], most) as file:
        stream = file.streams.video[0]
        stream.codec_context.options = _limited(max(2 * width * height, _ANY_FRAME))
        chosen, shown = _chosen(count, frames), list[NDArray[np.uint8]]()
        left = most
        for number, frame in enumerate(_each(file.decode(stream))):
            left -= frame.width * frame.height
            if left < 0:
                raise _bad(f"its frames have more than the {most:,} pixels of max_video_pixels")
            if number in chosen:
                plain = frame.to_ndarray(format="rgb24", width=width, height=height)
                shown.append(np.rot90(plain, frame.rotation // 90))
            if number >= max(chosen, default=0):
                break
        if not shown:
            raise _bad("there is no frame in it")
        rate = float(stream.average_rate or stream.guessed_rate or _LISTED_RATE)
    return Clip(np.stack(shown), rate * len(chosen) / count)


def _chosen(count: int, most: int) -> list[int]:
    """The indexes of the frames that the model sees, as transformers and OpenVINO GenAI choose."""
    many = min(count, most)
    return [at * count // many for at in range(many)]


def _is_file(files: Sequence[bytes]) -> bool:
    """Whether it is the file of a video, and no frames."""
    kind = kind_of(files[0])
    return len(files) == 1 and (kind in _FORMS or not kind.startswith("image/"))


def _opened(data: bytes, most: int) -> Any:
    form = _FORMS.get(kind_of(data))
    if form is None:
        raise _bad("these bytes are of no known form (MP4, MOV, WebM, Matroska, AVI, GIF)")
    try:
        file = av.open(
            BytesIO(data),
            format=form,
            metadata_errors="ignore",
            options=_limited(most),
        )
    except _DAMAGE as error:
        raise _undecodable(error) from None
    if not file.streams.video:
        file.close()
        raise _bad("there is no picture in it")
    return file


def _limited(most: int) -> dict[str, str]:
    """Options with which a decoder takes no larger frames, whatever the header says."""
    return {"max_pixels": str(min(most, (1 << 31) - 1))}


def _size(file: Any) -> tuple[int, int]:
    context = file.streams.video[0].codec_context
    if context is None or not context.width * context.height:
        raise _bad("its header states no size, or a coding that is unknown here")
    return context.width, context.height


def _each(decoding: Any) -> Any:
    """What comes out, with the errors of its decoder as ours."""
    try:
        yield from decoding
    except _DAMAGE as error:
        raise _undecodable(error) from None


_DAMAGE = (av.error.FFmpegError, ValueError, OverflowError, MemoryError)


def _undecodable(error: Exception) -> RequestError:
    return _bad(f"it cannot be decoded, it is damaged or cut off ({text_of(error)})")


def _bad(why: str) -> RequestError:
    return RequestError(f"the video is not usable: {why}", param="messages")
