"""Contract of engines that see images, and of those that do not."""

from __future__ import annotations

import asyncio

import pytest

from penstock.engines.base import LLMEngine
from penstock.errors import (
    RequestError,
)
from penstock.testing.asking import (
    Asked,
    answer,
    chat_request,
    image_request,
    noise,
)


class Images(Asked):
    """Tests of images in conversations."""

    async def test_images_are_seen_in_their_order_and_beside_texts(self, engine: LLMEngine) -> None:
        _needs_images(engine)
        one, other = noise(1), noise(2, 48, 64)
        asked = [
            chat_request(self.prompt),
            *(image_request(self.prompt, images) for images in ([one], [other])),
            *(image_request(self.prompt, images) for images in ([one, other], [other, one])),
        ]
        alone = [await answer(engine, request) for request in asked]
        assert len({result.texts[0] for result in alone}) == len(asked)
        tokens = [result.usage.prompt_tokens for result in alone]
        assert tokens[0] < min(tokens[1:3]) <= max(tokens[1:3]) < tokens[3] == tokens[4]
        together = await asyncio.gather(*(answer(engine, request) for request in asked * 3))
        assert [result.texts for result in together] == [result.texts for result in alone] * 3

    async def test_a_bad_image_is_refused_and_harms_nobody(self, engine: LLMEngine) -> None:
        _needs_images(engine)
        good = image_request(self.prompt, [noise(1)])
        alone = await answer(engine, good)
        cut, path = noise(1)[: len(noise(1)) // 8 * 4], "/etc/passwd"
        beside = [asyncio.create_task(answer(engine, good)) for _ in range(3)]
        for image in ("data:image/png;base64,aGVsbG8=", "data:image/png;base64,%", cut, path):
            with pytest.raises(RequestError) as caught:
                await answer(engine, image_request(self.prompt, [noise(2), image]))
            assert caught.value.status == 400
        assert {result.texts[0] for result in await asyncio.gather(*beside)} == {alone.texts[0]}

    async def test_an_engine_without_eyes_refuses_images_by_its_name(
        self, engine: LLMEngine
    ) -> None:
        if "text" not in engine.capabilities.inputs or "image" in engine.capabilities.inputs:
            pytest.skip("it sees, or leaves that to a server")
        with pytest.raises(RequestError, match=r"image|multimodal"):
            await answer(engine, image_request(self.prompt, [noise(1)]))


def _needs_images(engine: LLMEngine) -> None:
    if "image" not in engine.capabilities.inputs:
        pytest.skip("no images")
