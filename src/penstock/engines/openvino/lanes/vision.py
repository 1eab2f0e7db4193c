"""What is special about a vision-language model in the worker process: its images are decoded, and
its prompts are texts.

The pipeline of such a model takes no token ids. A prompt is kept as text for it, and as the token
ids that are counted; in these the places of an image hold numbers that name its content, so that
the prefix index tells images apart as the pipeline's cache does.

Images are decoded in a thread beside the steps, a few at a time: their pixels are large, and are
dropped as soon as the pipeline has made embeddings of them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from hashlib import blake2b
from itertools import count, repeat
from typing import TYPE_CHECKING, Any

import numpy as np
import openvino as ov

from penstock import lazy
from penstock.engines.chat_template import IMAGE_TAG
from penstock.engines.process import Submit
from penstock.errors import PenstockError, RequestError, UnsupportedError

if TYPE_CHECKING:
    from penstock.engines.openvino.lanes.lane import Lane
    from penstock.engines.openvino.lanes.request import Request
    from penstock.engines.openvino.pipeline import Tokenizer

_AHEAD_PIXELS = 1 << 26
"""Pixels that wait decoded, unless one request has more by itself."""
_WAIT_SECONDS = 0.002
_MERGED_PATCH = 28
"""Pixels a side that become a token where images keep their size, as in Qwen2-VL."""

_END_LINES = frozenset({"llava", "llava_next"})
"""Types of models for which GenAI writes a line end behind each image, as their templates do."""

Size = tuple[int, int]


class Picture:
    """What a request shows: the files of its images, and their pixels while those are `ahead`:
    decoded, or about to be, and not yet in the pipeline.
    """

    def __init__(self, files: Sequence[bytes], sizes: list[Size]) -> None:
        self.files = files
        self.sizes = sizes
        self.pixels = sum(width * height for width, height in sizes)
        self.tensors: list[ov.Tensor] = []
        self.ahead = False


class Vision:
    """The images of all requests of one model. `config` is its `config.json`."""

    def __init__(self, config: Mapping[str, Any], max_pixels: int) -> None:
        self._images = lazy.require(
            "penstock.engines.media.images", needed_by="A vision-language model"
        )
        self._images.Image.MAX_IMAGE_PIXELS = None  # this process has a limit of its own
        self._max_pixels = max_pixels
        self._thread = ThreadPoolExecutor(1, "penstock-images")
        self._waiting: deque[tuple[Lane, Request]] = deque()
        self._decoding: dict[Future[list[ov.Tensor]], tuple[Lane, Request]] = {}
        self._ahead = 0
        self._tokens_by_size: dict[Size, int] = {}
        self._usual_tokens = _usual_tokens(config)
        self._mark_ids = mark_ids(config)
        self._ends_lines = config.get("model_type") in _END_LINES

    # Prompts
    def prompt(self, submit: Submit, tokenizer: Tokenizer) -> tuple[str, list[int], Picture | None]:
        """A request's prompt as text, its token ids, and its images, not decoded yet. Raises
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
            return text, given, None
        if not submit.images:
            encoded = tokenizer.encode([given], submit.special_tokens)
            check_marks(encoded, self._mark_ids)
            return given, encoded[0], None
        sizes = self._images.check_pixels(submit.images, self._max_pixels)
        pieces = counted = given.split(submit.image_mark)
        if self._ends_lines:  # GenAI puts a line end behind the image, which is here already
            pieces = [pieces[0], *(piece.removeprefix("\n") for piece in pieces[1:])]
        # The empty text before an image at the beginning has the special tokens.
        first = tokenizer.encode([counted[0]], submit.special_tokens)
        encoded = first + tokenizer.encode(counted[1:], special_tokens=False)
        check_marks(encoded, self._mark_ids)
        ids, *others = encoded
        for data, size, more in zip(submit.images, sizes, others, strict=True):
            digest = blake2b(data, digest_size=7).digest()
            ids = ids + [-1 - int.from_bytes(digest, "little")] * self._tokens(size) + more
        marks: Iterable[str] = repeat(submit.image_mark)
        if submit.image_mark == IMAGE_TAG:  # GenAI numbers them
            marks = (f"<ov_genai_image_{number}>" for number in count())
        given = pieces[0] + "".join(map("".join, zip(marks, pieces[1:], strict=False)))
        return given, ids, Picture(submit.images, sizes)

    def _tokens(self, size: Size) -> int:
        if (known := self._tokens_by_size.get(size)) is not None:
            return known
        width, height = size
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
        return bool(self._waiting or self._decoding)

    def begin(self, lane: Lane, request: Request) -> None:
        """Decode the images of a request, when there is room for their pixels."""
        self._waiting.append((lane, request))
        self._go_on()

    def forget(self, request: Request) -> None:
        """Give a request up, wherever it is."""
        self._waiting = deque(entry for entry in self._waiting if entry[1] is not request)
        for future in [f for f, (_, its) in self._decoding.items() if its is request]:
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
                request.picture.tensors = future.result()
            except PenstockError as why:
                error = why
            except Exception as why:
                error = RequestError(f"an image cannot be decoded: {why}", param="image")
            done.append((lane, request, error))
        return done

    def shown(self, request: Request) -> None:
        """The pipeline has the pixels, or nobody wants them any more."""
        picture = request.picture
        if picture is not None and picture.ahead:
            picture.ahead, picture.tensors = False, []
            self._ahead -= picture.pixels
            self._go_on()

    def _go_on(self) -> None:
        while self._waiting:
            lane, request = self._waiting[0]
            picture = request.picture
            assert picture is not None
            if self._ahead and self._ahead + picture.pixels > _AHEAD_PIXELS:
                return
            self._waiting.popleft()
            picture.ahead = True
            self._ahead += picture.pixels
            self._decoding[self._thread.submit(self._decoded, picture.files)] = (lane, request)

    def _decoded(self, files: Sequence[bytes]) -> list[ov.Tensor]:
        return [ov.Tensor(np.array(self._images.decoded(data))) for data in files]


_MARK_IDS = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")


def mark_ids(config: Mapping[str, Any]) -> frozenset[int]:
    """The ids of a model's tokens that stand for images, or around them, by its `config.json`."""
    return frozenset(config[name] for name in _MARK_IDS if name in config)


def check_marks(texts: Iterable[Iterable[int]], marks: frozenset[int]) -> None:
    """Raise `RequestError` for a text (its token ids) that holds one of the `marks`: GenAI would
    read beyond the images for it.
    """
    if not all(marks.isdisjoint(ids) for ids in texts):
        raise RequestError(
            "a text holds a token that stands for an image: leave it out", param="messages"
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
