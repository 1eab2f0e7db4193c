"""Which masks of a graph may be replaced by others."""

import shutil

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as ops

from penstock.demo import model_path
from penstock.engines.openvino.logits.graph import take_mask
from penstock.engines.openvino.logits.model import LogitModel
from penstock.engines.openvino.options import OpenVINOOptions


def graph(*mask_shape):
    """Attention of four heads under a mask."""
    states = ops.parameter([-1, 4, -1, 8], np.float32)
    mask = ops.parameter(mask_shape, np.float32)
    attention = ops.scaled_dot_product_attention(states, states, states, mask)
    return ov.Model([attention], [states, mask], "attention")


@pytest.mark.parametrize(
    ("shape", "taken"), [((-1, 1, -1, -1), True), ((-1, 4, -1, -1), False), ((-1,) * 4, False)]
)
def test_masks_of_single_heads_stay(shape, taken):
    """ALiBi's distances stand in them."""
    model = graph(*shape)
    assert take_mask(model) is taken
    names = {name for port in model.inputs for name in port.names}
    assert ("penstock_mask" in names) is taken


def test_a_mask_with_a_window_stays(tmp_path):
    for end in ("xml", "bin"):
        shutil.copy(model_path("openvino") / f"openvino_model.{end}", tmp_path)
    (tmp_path / "config.json").write_text('{"sliding_window": 64}')
    model = LogitModel(str(tmp_path / "openvino_model.xml"), OpenVINOOptions())
    assert not model.takes_trees
