"""What every engine keeps that makes vectors of images."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from penstock.engines.base import LLMEngine
from penstock.errors import RequestError
from penstock.openai.media.images import part_with
from penstock.testing.asking import PATIENCE, noise
from penstock.types import ChatRequest, EmbeddingRequest, Embeddings


@pytest.mark.asyncio(loop_scope="module")
class ImageVectorContract:
    """What every engine that embeds images and texts keeps. A subclass's module has the fixture
    `engine` of `EngineContract`.
    """

    async def _embedded(self, engine: LLMEngine, *inputs: str | ChatRequest) -> Embeddings:
        return await asyncio.wait_for(engine.embeddings(EmbeddingRequest(inputs)), PATIENCE)

    async def test_it_says_that_it_sees(self, engine: LLMEngine) -> None:
        assert {"text", "image"} <= set(engine.capabilities.inputs)

    async def test_images_texts_and_both_have_vectors_of_their_own(self, engine: LLMEngine) -> None:
        one, other = noise(1), noise(2, 48, 64)
        inputs: list[str | ChatRequest] = ["a cat", "a dog"]
        inputs += [_shown(one), _shown(other), _shown(one, other), _shown(other, one)]
        inputs += [_shown(one, text="a cat")]
        each = [await self._embedded(engine, given) for given in inputs]
        vectors = [found.vectors[0] for found in each]
        for number, vector in enumerate(vectors):
            assert all(_distance(vector, before) > 1e-3 for before in vectors[:number])
        together = await self._embedded(engine, *inputs)
        for vector, alone in zip(together.vectors, vectors, strict=True):
            assert _distance(vector, alone) < 1e-4
        tokens = [found.usage.prompt_tokens for found in each]
        assert together.usage.prompt_tokens == sum(tokens)
        assert tokens[0] < tokens[6]
        assert max(tokens[2:4]) < tokens[4] == tokens[5]
        again = await asyncio.gather(*(self._embedded(engine, given) for given in inputs * 2))
        for found, alone in zip(again, vectors * 2, strict=True):
            assert _distance(found.vectors[0], alone) < 1e-4

    async def test_a_bad_image_is_refused_and_harms_nobody(self, engine: LLMEngine) -> None:
        good = _shown(noise(1))
        alone = (await self._embedded(engine, good)).vectors[0]
        cut, path = noise(1)[: len(noise(1)) // 8 * 4], "/etc/passwd"
        beside = [asyncio.create_task(self._embedded(engine, good, "a")) for _ in range(3)]
        for image in ("data:image/png;base64,aGVsbG8=", "data:image/png;base64,%", cut, path):
            with pytest.raises(RequestError) as caught:
                await self._embedded(engine, "a cat", _shown(noise(2), image))
            assert caught.value.status == 400
        for found in await asyncio.gather(*beside):
            assert _distance(found.vectors[0], alone) < 1e-4


def _shown(*images: str, text: str = "") -> ChatRequest:
    parts = [*map(part_with, images), *([{"type": "text", "text": text}] if text else [])]
    return ChatRequest([{"role": "user", "content": parts}])


def _distance(one: Sequence[float], other: Sequence[float]) -> float:
    """The largest difference of two vectors' numbers."""
    return max(abs(a - b) for a, b in zip(one, other, strict=True))
