"""A worse copy of the demo model, its weights rounded to fewer bits: the small model of a pair."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import openvino as ov
from openvino import opset13 as ops

from penstock.demo import model_path

_SMALLEST = 4000
"""Numbers of a matrix that is rounded; the rest are scales and shapes."""


def rounded_model(target: Path, bits: int) -> Path:
    """Save the demo model in `target`, each of its 8-bit weights rounded to `bits` bits."""
    source = Path(model_path("openvino"))
    model = ov.Core().read_model(str(source / "openvino_model.xml"))
    step = 2 ** (8 - bits)
    for one in model.get_ops():
        if one.get_type_name() != "Constant" or one.get_element_type() != ov.Type.i8:
            continue
        if one.data.size < _SMALLEST:
            continue
        weights = np.clip(np.round(one.data.astype(np.float32) / step) * step, -128, 127)
        fewer = ops.constant(weights.astype(np.int8))
        for user in list(one.output(0).get_target_inputs()):
            user.replace_source_output(fewer.output(0))
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("openvino_model.*"))
    ov.save_model(model, str(target / "openvino_model.xml"), compress_to_fp16=True)
    return target
