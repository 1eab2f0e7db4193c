"""The files with which OpenVINO GenAI reads a model that sees rightly: links to the model's own,
but for some that are written anew.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from xml.etree import ElementTree

from penstock.engines.openvino.model.files import read_config

TOKENIZER = "openvino_tokenizer.xml"


@contextmanager
def linked(path: Path, own: Collection[str]) -> Iterator[Path]:
    """A directory of links to a model's files, but for those that will have a file of their `own`
    there: no link of that name may lead to the model's.
    """
    with TemporaryDirectory(prefix="penstock-model-") as name:
        for file in path.iterdir():
            if file.name not in own:
                Path(name, file.name).symlink_to(file.resolve())
        yield Path(name)


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
    with linked(Path(path), {"config.json"}) as folder:
        config["vision_config"] = {**seen, "tokens_per_second": 1}
        (folder / "config.json").write_text(json.dumps(config))
        yield str(folder), {}


def write_tokenizer_that_adds_none(path: Path, target: Path) -> None:
    """Write the tokenizer of a model in `path` into `target`, without the tokens that it adds by
    itself. They are segments with constants for their begin, end and ids: each of them ends where
    it begins. Its XML is edited, as the process need not know a tokenizer's operations for that.
    """
    graph = ElementTree.parse(path / TOKENIZER)
    kinds = {layer.attrib["id"]: layer.attrib["type"] for layer in graph.iterfind("layers/layer")}
    into = {
        (edge.attrib["to-layer"], int(edge.attrib["to-port"])): edge.attrib
        for edge in graph.iterfind("edges/edge")
        if kinds[edge.attrib["to-layer"]] == "CombineSegments"
    }
    for (layer, port), end in into.items():
        if port % 3 == 1 and kinds[end["from-layer"]] == "Const":
            begin = into[layer, port - 1]
            end.update({name: begin[name] for name in ("from-layer", "from-port")})
    graph.write(target / TOKENIZER)
