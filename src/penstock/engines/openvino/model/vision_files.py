"""The files of a vision-language model as OpenVINO GenAI reads them rightly."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from penstock.engines.openvino.model.files import read_config


@contextmanager
def as_trained(path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The directory to load a model from, and no properties. For Qwen2-VL it is one of links: GenAI
    would double the time between a video's frames, as no file says what one takes.
    """
    config = read_config(Path(path))
    seen = config.get("vision_config") or {}
    if config.get("model_type") != "qwen2_vl" or "tokens_per_second" in seen:
        yield path, {}
        return
    with TemporaryDirectory(prefix="penstock-model-") as name:
        for file in Path(path).iterdir():
            if file.name != "config.json":
                (Path(name) / file.name).symlink_to(file.resolve())
        config["vision_config"] = {**seen, "tokens_per_second": 1}
        (Path(name) / "config.json").write_text(json.dumps(config))
        yield name, {}
