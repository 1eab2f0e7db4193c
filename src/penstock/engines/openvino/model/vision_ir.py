"""Mends the graph of a converted embedding model that sees: `python -m
penstock.engines.openvino.model.vision_ir FOLDER`.

For texts without images GenAI 2026.4.1 gives one mask for all tokens, where the graph that
optimum-intel 2.1 exports wants one for each: it is spread over them.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import openvino as ov
from openvino import opset13 as ops

from penstock.engines.openvino.model.files import LANGUAGE_MODEL

_MASK, _TOKENS = "visual_pos_masks", "inputs_embeds"


def mend(folder: Path) -> None:
    """Rewrite the language model in `folder`, if its graph has such a mask."""
    file = folder / LANGUAGE_MODEL
    model = ov.Core().read_model(file)
    given = {name: port for port in model.inputs for name in port.get_names()}
    if _MASK not in given:
        return
    mask = given[_MASK]
    takers = list(mask.get_target_inputs())
    shape = ops.gather(ops.shape_of(given[_TOKENS]), [0, 1], 0)
    spread = ops.broadcast(mask, shape)
    for taker in takers:
        taker.replace_source_output(spread.output(0))
    mended = file.with_name(f"mended_{file.name}")
    ov.save_model(model, mended, compress_to_fp16=False)
    del model  # its weights are mapped
    for suffix in (".bin", ".xml"):
        os.replace(mended.with_suffix(suffix), file.with_suffix(suffix))


if __name__ == "__main__":
    mend(Path(sys.argv[1]))
