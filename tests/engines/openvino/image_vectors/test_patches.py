"""The sizes that images are scaled to, as `smart_resize` of transformers gives them."""

import pytest

from penstock.engines.openvino.image_vectors import Patches

SCALED = {
    **{(1280, 720): (1280, 704), (720, 1280): (704, 1280), (80, 240): (64, 256)},
    **{(1, 1): (64, 64), (90, 1): (608, 32), (640, 480): (640, 480)},
    **{(1920, 1080): (1504, 832), (4000, 3000): (1312, 960)},
}


@pytest.mark.parametrize("size", SCALED)
def test_an_image_has_the_size_that_the_model_was_trained_with(size):
    patches = Patches(32, 64**2, 1280 * 32**2)
    assert patches.scaled(size) == SCALED[size]
    width, height = SCALED[size]
    assert patches.tokens(size) == width * height // 32**2
