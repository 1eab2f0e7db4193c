"""What is special about a vision-language model in the worker process: its images and videos are
decoded, and its prompts are texts.

The pipeline of such a model takes no token ids. A prompt is kept as text for the pipeline, and as
token ids for counting. Among these ids, the places of an image or a video hold numbers that
identify its content, so that the prefix index tells images apart as the pipeline's cache does.

Files are decoded in threads beside the steps, a few at a time: their pixels are large, and are
dropped as soon as the pipeline has made embeddings of them. Requests with videos have a thread of
their own: all frames of a video are decoded up to the last one shown, and images would wait for it.
"""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from hashlib import blake2b
from itertools import chain, count
from typing import TYPE_CHECKING, Any

import numpy as np
import openvino as ov
import openvino_genai as genai

from penstock import lazy
from penstock.engines.openvino.options import OpenVINOOptions
from penstock.engines.process import Submit
from penstock.engines.templates.chat_template import TAGS
from penstock.errors import PenstockError, RequestError, UnsupportedError

if TYPE_CHECKING:
    from penstock.engines.openvino.lanes.lane import Lane
    from penstock.engines.openvino.lanes.request import Request
    from penstock.engines.openvino.pipeline import Tokenizer

_AHEAD_PIXELS = 1 << 26
"""The most decoded pixels that wait in a queue; a single request may have more."""
_WAIT_SECONDS = 0.002
_MERGED_PATCH = 28
"""The side, in pixels, of the square that becomes one token, if images keep their size, as in
Qwen2-VL.
"""

_END_LINES = frozenset({"llava", "llava_next", "llava_next_video"})
"""Types of models for which GenAI writes a line end behind each image, as their templates do."""
_TAGGED = _END_LINES | {"qwen2_vl", "qwen2_5_vl"}
"""Types of models for which a numbered tag and the model's own mark give the same prompt."""
_VIDEOS_FIRST = ("qwen",)
"""Beginnings of types of models for which GenAI counts positions as if videos came first."""

Size = tuple[int, ...]
"""The width and the height in pixels; of a video also the number of frames that are shown."""


class _Shown:
    """An image or a video: its file, or those of its frames, and a number that its content has."""

    def __init__(self, files: Sequence[bytes], size: Size) -> None:
        self.files = files
        self.size = size
        digest = blake2b(digest_size=7)
        for file in files:
            digest.update(file)
        self.number = int.from_bytes(digest.digest(), "little")


class Picture:
    """What a request shows: its images and videos, and their pixels while those are `ahead`:
    decoded, or about to be, and not yet in the pipeline. `tensors` and `options` are what the
    pipeline is given for them.
    """

    def __init__(self, images: Sequence[_Shown], videos: Sequence[_Shown]) -> None:
        self.images = images
        self.videos = videos
        self.sizes = [one.size for one in (*images, *videos)]
        self.pixels = sum(map(math.prod, self.sizes))
        self.tensors: list[list[ov.Tensor]] = []
        self.options: dict[str, Any] = {}
        self.ahead = False


class _Line:
    """Requests that are decoded one after another, in a thread. `ahead` are the pixels that wait
    decoded.
    """

    def __init__(self, name: str) -> None:
        self.thread = ThreadPoolExecutor(1, f"penstock-{name}")
        self.waiting: deque[tuple[Lane, Request]] = deque()
        self.ahead = 0


class Vision:
    """The images and videos of all requests of one model. `config` is its `config.json`."""

    def __init__(self, config: Mapping[str, Any], options: OpenVINOOptions) -> None:
        self._images = image_reader("A vision-language model")
        self._options = options
        self._lines = (_Line("images"), _Line("videos"))
        self._decoding: dict[Future[None], tuple[Lane, Request]] = {}
        self._tokens_by_size: dict[Size, int] = {}
        self._usual_tokens = _usual_tokens(config)
        self._type = str(config.get("model_type"))
        self._mark_ids = mark_ids(config)

    # Prompts
    def prompt(self, submit: Submit, tokenizer: Tokenizer) -> tuple[str, list[int], Picture | None]:
        """A request's prompt as text, its token ids, and what it shows, not decoded yet. Raises
        `RequestError`.
        """
        given = submit.prompt
        if not isinstance(given, str):
            text = tokenizer.decode([given], skip_special_tokens=False)[0]
            if tokenizer.encode([text], special_tokens=False)[0] != given:
                raise UnsupportedError(
                    "a vision-language model takes token ids only as its tokenizer makes them of a"
                    " text",
                    param="prompt",
                )
            check_marks([text], [given], self._mark_ids)
            return text, given, None
        if not submit.images and not submit.videos:
            ids = tokenizer.encode([given], submit.special_tokens)[0]
            check_marks([given], [ids], self._mark_ids)
            return given, ids, None
        picture = self._picture(submit)
        marks = [mark for mark in (submit.image_mark, submit.video_mark) if mark]
        pieces = re.split(f"({'|'.join(map(re.escape, marks))})", given)
        texts, shown = pieces[::2], pieces[1::2]
        videos_first = sorted(shown, key=marks.index, reverse=True)
        if self._type.startswith(_VIDEOS_FIRST) and shown != videos_first:
            raise UnsupportedError(
                "videos must stand before images in the messages to this model", param="messages"
            )
        # The empty text before an image at the beginning has the special tokens.
        first = tokenizer.encode([texts[0]], submit.special_tokens)
        ids, *others = first + tokenizer.encode(texts[1:], special_tokens=False)
        check_marks(texts, [ids, *others], self._mark_ids)
        left = {submit.image_mark: iter(picture.images), submit.video_mark: iter(picture.videos)}
        for mark, more in zip(shown, others, strict=True):
            one = next(left[mark])
            ids = ids + [-1 - one.number] * self._tokens(one.size) + more
        texts = self._pieces(texts)
        numbers = {mark: count() for mark in marks}
        for at, mark in enumerate(shown):
            if mark in TAGS.values():  # GenAI numbers them
                shown[at] = _numbered(mark, next(numbers[mark]))
        return "".join(chain(*zip(texts, [*shown, ""], strict=True))), ids, picture

    def _picture(self, submit: Submit) -> Picture:
        options = self._options
        most = options.max_image_pixels
        sizes = self._images.check_pixels(submit.images, most)
        clips: list[Size] = []
        if submit.videos:
            self._videos = lazy.require("penstock.engines.media.videos", needed_by="A video")
            most -= sum(map(math.prod, sizes))
            clips = self._videos.check_frames(submit.videos, options.video_frames, most)
        return Picture(
            [_Shown((file,), size) for file, size in zip(submit.images, sizes, strict=True)],
            [_Shown(files, size) for files, size in zip(submit.videos, clips, strict=True)],
        )

    def tagged(
        self, text: str, mark: str, files: Sequence[bytes], tokenizer: Tokenizer
    ) -> tuple[str, list[ov.Tensor]]:
        """A text whose images have numbered tags, which every model of GenAI's takes, and the
        pixels of these. Raises `RequestError`; `UnsupportedError` for a model whose own `mark` is
        not the same as the tag.
        """
        if mark != TAGS["image"] and self._type not in _TAGGED:
            raise UnsupportedError(
                f"no decisions are made about images by a model of the type '{self._type}', but by"
                f" those of {', '.join(sorted(_TAGGED))}: ask it for an answer with a json_schema",
                param="messages",
            )
        self._images.check_pixels(files, self._options.max_image_pixels)
        texts = text.split(mark)
        check_marks(texts, tokenizer.encode(texts, special_tokens=False), self._mark_ids)
        return with_tags(self._pieces(texts)), self._decoded(files)

    def _pieces(self, pieces: list[str]) -> list[str]:
        """The texts around images. GenAI may put a line end behind an image, which is there
        already.
        """
        if self._type not in _END_LINES:
            return pieces
        return [pieces[0], *(piece.removeprefix("\n") for piece in pieces[1:])]

    def _tokens(self, size: Size) -> int:
        if (known := self._tokens_by_size.get(size)) is not None:
            return known
        width, height, *frames = size
        if frames:  # pairs of them, or a quarter of the tokens of an image for each
            usual = self._usual_tokens // 4 * frames[0]
            return usual or width * height // _MERGED_PATCH**2 * -(-frames[0] // 2) + 2
        return self._usual_tokens or width * height // _MERGED_PATCH**2 + 2

    def learn(self, request: Request, prompt_tokens: int) -> None:
        """The pipeline has counted the tokens of a prompt: know those of an image's size."""
        request.prompt_tokens, counted = prompt_tokens, request.prompt_tokens
        sizes = request.picture.sizes if request.picture is not None else []
        if counted != prompt_tokens and len(set(sizes)) == 1:
            each = self._tokens(sizes[0]) + (prompt_tokens - counted) // len(sizes)
            self._tokens_by_size[sizes[0]] = max(each, 1)

    # Pixels
    @property
    def busy(self) -> bool:
        return bool(self._decoding or any(line.waiting for line in self._lines))

    def begin(self, lane: Lane, request: Request) -> None:
        """Decode the images of a request, when there is room for their pixels."""
        line = self._line_of(request)
        line.waiting.append((lane, request))
        self._go_on(line)

    def forget(self, request: Request) -> None:
        """Give a request up, wherever it is."""
        for line in self._lines:
            line.waiting = deque(entry for entry in line.waiting if entry[1] is not request)
        for future in [f for f, (_, its) in self._decoding.items() if its is request]:
            future.cancel()
            del self._decoding[future]
        self.shown(request)

    def turn(self, serving: bool) -> list[tuple[Lane, Request, PenstockError | None]]:
        """The requests whose images are decoded, or cannot be. Waits a moment if nothing else runs,
        as `serving` says.
        """
        if self._decoding and not serving:
            wait(self._decoding, _WAIT_SECONDS, "FIRST_COMPLETED")
        done: list[tuple[Lane, Request, PenstockError | None]] = []
        for future in [future for future in self._decoding if future.done()]:
            lane, request = self._decoding.pop(future)
            assert request.picture is not None
            error: PenstockError | None = None
            try:
                future.result()
            except PenstockError as why:
                error = why
            except Exception as why:
                error = RequestError(
                    f"an image or video cannot be decoded: {why}", param="messages"
                )
            done.append((lane, request, error))
        return done

    def shown(self, request: Request) -> None:
        """The pipeline has the pixels, or nobody wants them any more."""
        picture = request.picture
        if picture is not None and picture.ahead:
            picture.ahead, picture.tensors, picture.options = False, [], {}
            line = self._line_of(request)
            line.ahead -= picture.pixels
            self._go_on(line)

    def _line_of(self, request: Request) -> _Line:
        assert request.picture is not None
        images, videos = self._lines
        return videos if request.picture.videos else images

    def _go_on(self, line: _Line) -> None:
        while line.waiting:
            lane, request = line.waiting[0]
            picture = request.picture
            assert picture is not None
            if line.ahead and line.ahead + picture.pixels > _AHEAD_PIXELS:
                return
            line.waiting.popleft()
            picture.ahead = True
            line.ahead += picture.pixels
            self._decoding[line.thread.submit(self._decode, picture)] = (lane, request)

    def _decode(self, picture: Picture) -> None:
        images = [file for one in picture.images for file in one.files]
        tensors, options = [self._decoded(images)], dict[str, Any]()
        if picture.videos:
            each = self._options.max_video_pixels // len(picture.videos)
            clips = [self._videos.clip_of(one.files, one.size[2], each) for one in picture.videos]
            tensors.append([_tensor(clip.frames) for clip in clips])
            options["videos_metadata"] = list(map(_metadata, clips))
        picture.tensors, picture.options = tensors, options

    def _decoded(self, files: Sequence[bytes]) -> list[ov.Tensor]:
        return [_tensor(self._images.decoded(data)) for data in files]


def _tensor(pixels: Any) -> ov.Tensor:
    return ov.Tensor(np.array(pixels))


def _metadata(clip: Any) -> genai.VideoMetadata:
    """So that all frames are taken, at the times that they have in the whole video."""
    made = genai.VideoMetadata()
    made.fps, made.frames_indices = clip.rate, range(len(clip.frames))
    return made


def image_reader(needed_by: str) -> Any:
    """`penstock.engines.media.images`, which needs Pillow, and here not Pillow's own limit:
    `max_image_pixels` is checked. Raises `MissingExtraError`.
    """
    images = lazy.require("penstock.engines.media.images", needed_by=needed_by)
    images.Image.MAX_IMAGE_PIXELS = None
    return images


def with_tags(texts: Sequence[str]) -> str:
    """The texts, with GenAI's numbered tag of an image between each two."""
    tags = [_numbered(TAGS["image"], number) for number in range(len(texts) - 1)]
    return "".join(chain(*zip(texts, [*tags, ""], strict=True)))


def _numbered(tag: str, number: int) -> str:
    return tag.replace("_tag", f"_{number}")


_NUMBERED = re.compile(r"<ov_genai_(image|video)_\d+>")
_MARK_IDS = (
    *("image_token_id", "image_token_index", "video_token_id", "video_token_index"),
    *("vision_start_token_id", "vision_end_token_id"),
)


def mark_ids(config: Mapping[str, Any]) -> frozenset[int]:
    """The ids of a model's tokens that stand for images, or around them, by its `config.json`."""
    return frozenset(config[name] for name in _MARK_IDS if name in config)


def check_marks(
    texts: Iterable[str], encoded: Iterable[Iterable[int]], marks: frozenset[int]
) -> None:
    """Raise `RequestError` for a text (`encoded`: its token ids) that holds one of the `marks`, or
    a tag that GenAI replaces by an image or a video: it would read beyond those, or show one twice.
    """
    if any(map(_NUMBERED.search, texts)) or not all(map(marks.isdisjoint, encoded)):
        raise RequestError(
            "a text holds a token that stands for an image or a video: leave it out",
            param="messages",
        )


def _usual_tokens(config: Mapping[str, Any]) -> int:
    """The tokens of an image where all have as many, by what the model's files state; else 0."""
    if isinstance(stated := config.get("image_seq_length"), int):
        return stated
    seen = config.get("vision_config") or {}
    size, patch = seen.get("image_size"), seen.get("patch_size")
    if isinstance(size, int) and isinstance(patch, int) and patch:
        return int((size // patch) ** 2)
    return 0
