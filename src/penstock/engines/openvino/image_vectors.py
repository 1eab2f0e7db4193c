"""Models that embed images and texts in one space, inside the worker process (Qwen3-VL-Embedding).

The parent makes a prompt of each input by the model's chat template. Texts go through the model
together, a prompt with images alone: GenAI's pipeline would show its images to all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import openvino as ov
import openvino_genai as genai

from penstock.engines.openvino.lanes.vision import check_marks, image_reader, mark_ids, with_tags
from penstock.engines.openvino.model.files import Pooling, read_config
from penstock.engines.openvino.model.vision_files import (
    TOKENIZER,
    linked,
    write_tokenizer_that_adds_none,
)
from penstock.engines.openvino.options import failure_of, reason_of
from penstock.engines.openvino.pipeline import own_template
from penstock.engines.openvino.tasks import Embedded, Embedding
from penstock.engines.process import Call, Failed
from penstock.engines.sampling import naming_input
from penstock.engines.templates.chat_template import TAGS
from penstock.errors import EngineStartError, PenstockError, RequestError

_LONGEST = 200
"""The most that an image may be longer than it is wide, or wider than it is long."""
_POOLING = {
    "mean": genai.TextEmbeddingPipeline.PoolingType.MEAN,
    "cls": genai.TextEmbeddingPipeline.PoolingType.CLS,
    "last_token": genai.TextEmbeddingPipeline.PoolingType.LAST_TOKEN,
}
_AROUND = 2
"""Tokens before and behind those of an image."""


class Prompt(NamedTuple):
    """A text with the tags that GenAI replaces by images, their files, and the tokens of all."""

    text: str
    files: Sequence[bytes]
    tokens: int


class ImageEmbedding(Embedding):
    """A model that embeds texts and images. Inputs are prompts: a text with a mark for each image,
    the images' files, and the mark.
    """

    kind = "an embedding model that sees"
    inputs = ("text", "image")
    pooling: Pooling = "last_token"

    def _load(self, pooling: Pooling) -> None:
        self._images = image_reader("An embedding model that sees")
        path = Path(self._path)
        self.chat_template = own_template(self._tokenizer)
        if (self._options.chat_template or self.chat_template) is None:
            raise EngineStartError(
                f"'{path}' has no chat template, which makes a prompt of texts and images: give"
                " one as chat_template"
            )
        stated = read_config(path)
        self._patches = Patches.of(read_config(path, "preprocessor_config.json"))
        self._mark_ids = mark_ids(stated)
        self._end = _end_of(self._tokenizer)
        config = genai.TextEmbeddingPipeline.Config()
        config.pooling_type = _POOLING[pooling]
        config.normalize = self._normalizes
        config.max_length = self._context_length
        with linked(path, {TOKENIZER}) as plain:
            # To the tokens that a tokenizer adds, GenAI 2026.4.1 adds them once more.
            write_tokenizer_that_adds_none(path, plain)
            self._pipeline = genai.EmbeddingPipeline(
                plain, self._options.device, text_embedding_config=config, **self._properties
            )
        try:
            self._width = len(self._embedded(["a"])[0])
        except RuntimeError as error:
            raise EngineStartError(
                f"the graph of '{path}' takes no texts without images ({reason_of(error)}): convert"
                " the model with `penstock models convert`"
            ) from None
        width = stated.get("text_config", {}).get("hidden_size", self._width)
        if not self._layers and self._width != width:
            raise EngineStartError(
                f"'{path}' generates text: its numbers for a token are no vector but"
                f" {self._width:,} logits; convert the model with the task 'embed'"
            )

    def begin_embeddings(self, calls: Sequence[Call]) -> list[Failed]:
        failed: list[Failed] = []
        for call in calls:
            try:
                prompts: list[Prompt] = []
                for number, given in enumerate(call.args[0]):
                    with naming_input(number, len(call.args[0])):
                        prompts.append(self._prompt(*given))
                lengths = [prompt.tokens for prompt in prompts]
                self._check(prompts, call, lengths)
                self._waiting.append(Embedded(call, prompts, lengths))
            except Exception as error:
                failed.append(failure_of(call.id, error))
        return failed

    def _prompt(self, text: str, files: Sequence[bytes], mark: str) -> Prompt:
        pieces = text.split(mark) if files else [text]
        encode = self._tokenizer.encode
        encoded = [
            encode([piece], add_special_tokens=not number).input_ids.data[0].tolist()
            for number, piece in enumerate(pieces)
        ]
        check_marks(pieces, encoded, self._mark_ids)
        sizes = self._images.check_pixels(files, self._options.max_image_pixels)
        if mark == TAGS["image"]:  # GenAI numbers them
            text = with_tags(pieces)
        seen = sum(self._patches.tokens(size) + _AROUND for size in sizes)
        tokens = sum(map(len, encoded)) + seen
        return Prompt(text + self._end, files, tokens)

    def _begun(self, group: list[tuple[Embedded, int]]) -> Callable[[], list[Any]]:
        return partial(self._made, group)  # GenAI's pipeline is waited for

    def _made(self, group: list[tuple[Embedded, int]]) -> list[Any]:
        prompts: list[Prompt] = [call.inputs[at] for call, at in group]
        texts = [prompt.text for prompt in prompts if not prompt.files]
        found = iter(self._embedded(texts) if texts else ())
        vectors: list[Any] = []
        for (call, at), prompt in zip(group, prompts, strict=True):
            try:
                with naming_input(at, len(call.inputs)):
                    vectors.append(self._shown(prompt) if prompt.files else next(found))
            except PenstockError as error:
                vectors.append(error)
        return vectors

    def _shown(self, prompt: Prompt) -> Any:
        """The vector of a prompt with images. Raises `RequestError`."""
        try:
            return self._embedded([prompt.text], list(map(self._scaled, prompt.files)))[0]
        except PenstockError:
            raise
        except Exception as error:
            raise RequestError(
                f"the images cannot be embedded: {reason_of(error)}", param="messages"
            ) from None

    def _embedded(self, texts: Sequence[str], images: Sequence[ov.Tensor] = ()) -> Any:
        found = self._pipeline.embed(list(texts), images=list(images)).embeddings.data
        return self._finished(found)

    def _scaled(self, data: bytes) -> ov.Tensor:
        """An image in the size that the model sees, scaled as transformers does it: GenAI leaves
        pixels out where an image becomes smaller.
        """
        image = self._images.decoded(data)
        bicubic = self._images.Image.Resampling.BICUBIC
        return ov.Tensor(np.array(image.resize(self._patches.scaled(image.size), bicubic)))


def _end_of(tokenizer: Any) -> str:
    """The text of the tokens that the tokenizer adds behind each text. Raises `EngineStartError`
    for one that adds some before it.
    """
    plain, whole = (
        tokenizer.encode(["a"], add_special_tokens=adds).input_ids.data[0].tolist()
        for adds in (False, True)
    )
    if whole[: len(plain)] != plain:
        raise EngineStartError("the tokenizer adds tokens before a text, which GenAI does not take")
    return str(tokenizer.decode(whole[len(plain) :], skip_special_tokens=False))


class Patches(NamedTuple):
    """How a model cuts an image into squares of `side` pixels, each a token, after scaling it to
    between `least` and `most` pixels. The rule is that of Qwen2-VL.
    """

    side: int
    least: int
    most: int

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Patches:
        """The patches that a `preprocessor_config.json` states."""
        size = settings.get("size") or {}
        least, most = settings.get("min_pixels"), settings.get("max_pixels")
        if least is None and most is None:
            least, most = size.get("shortest_edge"), size.get("longest_edge")
        side = settings.get("patch_size", 14) * settings.get("merge_size", 2)
        return cls(side, least or 56 * 56, most or 14 * 14 * 65536)

    def tokens(self, size: tuple[int, int]) -> int:
        """The tokens of an image of this width and height. Raises `RequestError` if it is too
        narrow.
        """
        return math.prod(self.scaled(size)) // self.side**2

    def scaled(self, size: tuple[int, int]) -> tuple[int, int]:
        """The width and height that an image is scaled to. Raises `RequestError`."""
        long, short = max(size), min(size)
        area = long * short
        across = [round(pixels / self.side) for pixels in size]  # a half to the even one
        scaled = math.prod(across) * self.side**2
        if scaled > self.most:
            factor = math.sqrt(area / self.most)
            across = [math.floor(pixels / factor / self.side) for pixels in size]
        elif scaled < self.least:
            factor = math.sqrt(self.least / area)
            across = [math.ceil(pixels * factor / self.side) for pixels in size]
        if long // short > _LONGEST or not all(across):
            raise RequestError(
                f"an image of {size[0]} × {size[1]} pixels is too narrow for this model",
                param="messages",
            )
        return across[0] * self.side, across[1] * self.side
