"""Texts with images as the language model of a vision-language model reads them: a row of numbers
for each token, and its positions.

Each kind of model has its own way to make these, and GenAI knows all. It has one pipeline that
gives numbers, `EmbeddingPipeline`: those of the language model's output. Here it loads the model's
files but for two: a language model whose output is its input, and a tokenizer that adds no special
tokens, as the text has them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import openvino_genai as genai
from openvino import opset13 as ops

from penstock.engines.openvino.model.files import LANGUAGE_MODEL
from penstock.engines.openvino.model.vision_files import (
    TOKENIZER,
    linked,
    write_tokenizer_that_adds_none,
)

_OWN = {LANGUAGE_MODEL, LANGUAGE_MODEL.replace(".xml", ".bin"), TOKENIZER}
_CLS = genai.TextEmbeddingPipeline.PoolingType.CLS


class Merged:
    """Tokens of a text with images. `embeddings` has the shape [tokens, width], `positions`
    [planes, tokens]. What follows has its place plus `ahead` as its position.
    """

    def __init__(
        self, embeddings: np.ndarray[Any, Any], positions: np.ndarray[Any, Any], ahead: int
    ) -> None:
        self.embeddings = embeddings
        self.positions = positions
        self.ahead = ahead

    def __len__(self) -> int:
        return len(self.embeddings)

    def __getitem__(self, part: slice) -> Merged:
        return Merged(self.embeddings[part], self.positions[:, part], self.ahead)


class Merging:
    """Makes what a model in the directory `path` reads. `planes`: how many positions a token has, 0
    if just its place.
    """

    def __init__(
        self, path: Path, properties: Mapping[str, Any], width: int, planes: int = 0
    ) -> None:
        self._width = width
        self._planes = planes
        with linked(path, _OWN) as target:
            ov.save_model(self._echo(), target / LANGUAGE_MODEL, compress_to_fp16=False)
            write_tokenizer_that_adds_none(path, target)
            self._pipeline = genai.EmbeddingPipeline(
                target, "CPU", pooling_type=_CLS, normalize=False, **properties
            )

    def _echo(self) -> Any:
        """A graph that returns its inputs as one row: embeddings, then positions."""
        embeddings = _input("inputs_embeds", [-1, -1, self._width], np.float32)
        inputs = [embeddings, _input("attention_mask", [-1, -1], np.int64)]
        rows = [ops.reshape(embeddings, ops.constant([1, 1, -1], np.int64), False)]
        if self._planes:
            positions = _input("position_ids", [self._planes, -1, -1], np.int64)
            inputs.append(positions)
            numbers = ops.convert(positions, np.float32)
            rows.append(ops.reshape(numbers, ops.constant([1, 1, -1], np.int64), False))
        row = ops.concat(rows, 2)
        row.output(0).set_names({"logits"})
        return ov.Model([ops.result(row)], inputs, "echo")

    def __call__(self, text: str, images: Sequence[ov.Tensor]) -> Merged:
        """The tokens of a text in which each image has its numbered tag."""
        row = self._pipeline.embed(text, list(images)).embeddings.data.reshape(-1)
        size = len(row) // (self._width + self._planes)
        embeddings, numbers = np.split(row, [size * self._width])
        positions = np.arange(size)[None]
        if self._planes:
            positions = numbers.astype(np.int64).reshape(self._planes, size)
        return Merged(
            embeddings.reshape(size, -1).copy(), positions, int(positions.max()) + 1 - size
        )


def _input(name: str, shape: list[int], kind: Any) -> Any:
    made = ops.parameter(shape, kind, name=name)
    made.output(0).set_names({name})
    return made
