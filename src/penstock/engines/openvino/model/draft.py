"""Draft models, which speculate for a larger one: small models of their own, and the heads of
[EAGLE-3](https://arxiv.org/abs/2503.01840), which go on from three layers of the larger one.
"""

from __future__ import annotations

import os
from pathlib import Path

from penstock.engines.openvino.model.files import read_config
from penstock.engines.openvino.options import OpenVINOOptions
from penstock.errors import EngineStartError

_DEFAULT_LAYERS_NEED = 10
"""Of a model with fewer layers, GenAI does not choose three by itself."""
_LAYERS = b"<hidden_layers_list "


def check_draft(options: OpenVINOOptions, target: Path) -> None:
    """Raise `EngineStartError` for a draft model that is not there, or that does not go with the
    options or the model in `target`.
    """
    if options.draft_model is None:
        return
    path = Path(options.draft_model).expanduser()
    named = f"draft_model '{options.draft_model}'"
    model = path / "openvino_model.xml"
    if not os.path.isfile(path if path.suffix == ".gguf" else model):
        raise EngineStartError(
            f"{named} is no directory with an openvino_model.xml: give a model in OpenVINO's form"
        )
    if not _is_eagle(path):
        return
    if options.assistant_confidence_threshold is not None:
        raise EngineStartError(
            f"{named} is a head of EAGLE-3, which takes no assistant_confidence_threshold: set"
            " num_speculative_tokens"
        )
    if target.suffix == ".gguf":
        raise EngineStartError(
            f"{named} is a head of EAGLE-3, which needs a model in OpenVINO's form, not a GGUF file"
        )
    layers = read_config(target).get("num_hidden_layers")
    if isinstance(layers, int) and layers < _DEFAULT_LAYERS_NEED and not _marked(path, _LAYERS):
        raise EngineStartError(
            f"{named} is a head of EAGLE-3, and the model has {layers} layers: write which three of"
            " them it reads into its openvino_model.xml, in rt_info:"
            ' <hidden_layers_list value="0 1 2" />'
        )


def needs_whole_prompts(options: OpenVINOOptions) -> bool:
    """Whether a step must compute prompts whole. GenAI 2026.4.1 lets a draft model of its own go on
    from a prompt of which the larger one has computed a part, and answers wrongly then.
    """
    return options.draft_model is not None and not _is_eagle(Path(options.draft_model).expanduser())


def _is_eagle(path: Path) -> bool:
    """Whether it is a head of EAGLE-3, as optimum-intel marks it."""
    return path.suffix != ".gguf" and _marked(path, b'<eagle3_mode value="True"')


def _marked(path: Path, mark: bytes) -> bool:
    with (path / "openvino_model.xml").open("rb") as file:
        return mark in file.read()
