"""Images and videos in messages: which parts hold them, what an engine reads of them, and the forms
that a video has: a file, or a list of frames. Decodes nothing.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from penstock.errors import RequestError, UnsupportedError
from penstock.openai.media.images import (
    IMAGE_PARTS,
    VIDEO_PARTS,
    Images,
    as_is,
    bytes_in,
    data_in,
    given_in,
    image_at,
    is_data_uri,
    part_with,
)
from penstock.types import Message

Videos = tuple[tuple[bytes, ...], ...]
"""The videos of a request, for each the bytes of its file, or of its frames' files."""
MEDIA_PARTS = (*IMAGE_PARTS, *VIDEO_PARTS)
_KINDS = {
    **dict.fromkeys(IMAGE_PARTS, "image"),
    **dict.fromkeys(VIDEO_PARTS, "video"),
    **dict.fromkeys(("audio_url", "input_audio"), "audio"),
}
_MEDIA = ("image", "audio", "video", "file", "embeds", "thinking", "tool_reference")
_FRAMES = "data:video/jpeg;base64,"
"""Begins the data URI of frames, each an image's file, as vLLM has it."""
_OF_QWEN = (
    *("fps", "nframes", "min_frames", "max_frames", "video_start", "video_end"),
    *("min_pixels", "max_pixels", "total_pixels", "resized_height", "resized_width"),
)
"""Keys of parts that Qwen's tools read, and no server."""


def frames_uri(files: Iterable[bytes]) -> str:
    """The frames of a video, the files of images, as one data URI."""
    return _FRAMES + ",".join(b64encode(file).decode() for file in files)


def video_at(part: Mapping[str, Any], param: str) -> str | bytes:
    """The video of a part, as it goes to an engine: a URI, or the bytes of a file. Raises
    `RequestError` naming `param`.
    """
    given = given_in(part)
    if (ready := as_is(given)) is not None:
        return ready
    if isinstance(given, list | tuple) and given:
        frames = [image_at({"type": "image", "image": frame}, param) for frame in given]
        for frame in frames:
            if isinstance(frame, str) and not is_data_uri(frame):
                raise RequestError(
                    f"{param}: a frame of a video is a data URI or bytes, not '{frame[:60]}'",
                    param=param,
                )
        return frames_uri(data_in(f, param) if isinstance(f, str) else f for f in frames)
    raise RequestError(
        f"{param}: a part of type '{part.get('type')}' needs a video_url with a url, the bytes of a"
        " video, or a list of its frames",
        param=param,
    )


def files_in(uri: str, param: str) -> tuple[bytes, ...]:
    """The file in a video's data URI, or the files of its frames. Raises `RequestError`."""
    if uri[: len(_FRAMES)].lower() != _FRAMES:
        return (bytes_in(uri, param),)
    return tuple(bytes_in(f"data:;base64,{one}", param) for one in uri[len(_FRAMES) :].split(","))


def media_in(messages: Sequence[Message]) -> list[Mapping[str, Any]]:
    """The parts of messages that hold images and videos, in order."""
    return [
        part
        for message in messages
        if isinstance(content := message.get("content"), list)
        for part in content
        if isinstance(part, Mapping) and part.get("type") in MEDIA_PARTS
    ]


def with_media(messages: Sequence[Message], uris: Sequence[Sequence[str]]) -> list[Message]:
    """Messages with a part for each of these URIs in the place of those with images and videos. The
    URIs are those of each such part in order: a PDF has several.
    """
    left = iter(uris)
    made: list[Message] = []
    for message in messages:
        content = message.get("content")
        if isinstance(content, list):
            parts: list[Any] = []
            for part in content:
                if isinstance(part, Mapping) and part.get("type") in MEDIA_PARTS:
                    parts += [part_with(uri, _KINDS[part["type"]]) for uri in next(left)]
                else:
                    parts.append(part)
            message = {**message, "content": parts}
        made.append(message)
    return made


def seen(
    messages: list[Message], inputs: Sequence[str], engine: str
) -> tuple[list[Message], Images, Images]:
    """Messages as templates take them, and their images and videos in order. Raises
    `UnsupportedError` for what the engine does not read, of which a template would make words;
    without any `inputs` it reads texts.
    """
    inputs = inputs or ("text",)
    found: dict[str, list[str | bytes]] = {"image": [], "video": []}
    shown: list[Message] = []
    for number, message in enumerate(messages):
        content = message.get("content")
        for at, part in enumerate(content) if isinstance(content, list) else ():
            kind = str(part.get("type"))
            if not any(medium in kind for medium in _MEDIA):
                continue
            where = f"messages[{number}].content[{at}]"
            medium = _KINDS.get(kind)
            if medium not in inputs:
                reads = " and ".join(f"{one}s" for one in inputs)
                raise UnsupportedError(
                    f"{where}: the {engine} engine reads {reads}, no '{kind}'", param=where
                )
            if medium not in found:  # its engine reads it by itself
                continue
            for name in _OF_QWEN:
                if part.get(name) is not None:
                    raise UnsupportedError(
                        f"{where}.{name} is not supported: the engine's options say how many"
                        " frames and pixels a model sees",
                        param=f"{where}.{name}",
                    )
            found[medium].append((image_at if medium == "image" else video_at)(part, where))
            message = {**message, "content": [*message["content"]]}
            message["content"][at] = {"type": medium}
        shown.append(message)
    images, videos = map(tuple, found.values())
    return (shown, images, videos) if images or videos else (messages, (), ())
