"""The weights of a model to convert: whether they are there, how many, and in which precision the
conversion writes them.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, structs

from penstock.errors import ConfigError

WeightFormat = Literal["auto", "fp32", "fp16", "int8", "int4"]
LARGE = 1_000_000_000
"""Parameters from which on int8 is the default."""
_PATTERNS = ("*.safetensors", "pytorch_model*.bin")
_LFS = b"version https://git-lfs"


class Quantization(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """How weights are quantized: the options of optimum-intel's exporter, by their names there.

    https://huggingface.co/docs/optimum-intel/openvino/export
    """

    awq: bool = False
    scale_estimation: bool = False
    gptq: bool = False
    lora_correction: bool = False
    all_layers: bool = False
    sym: bool = False
    dataset: str | None = None
    num_samples: Annotated[int, Meta(ge=1)] | None = None
    group_size: Annotated[int, Meta(ge=-1)] | None = None
    ratio: Annotated[float, Meta(ge=0, le=1)] | None = None
    sensitivity_metric: str | None = None
    backup_precision: Literal["none", "int8_sym", "int8_asym"] | None = None

    def arguments(self) -> list[str]:
        """The arguments for the exporter's command line."""
        given: list[str] = []
        for name, value in structs.asdict(self).items():
            flag = f"--{name.replace('_', '-')}"
            if value is True:
                given.append(flag)
            elif value not in (None, False):
                given += [flag, str(value)]
        return given


def check_weights(weight_format: WeightFormat | None, quantization: Quantization) -> None:
    """Raise `ConfigError` for quantization that the format has no place for."""
    if quantization == Quantization() or weight_format == "int4":
        return
    field = "engine_kwargs.conversion"
    if weight_format != "int8":
        raise ConfigError("needs weight_format int8 or int4", field=field)
    for name, value in structs.asdict(quantization).items():
        if value not in (None, False) and name not in ("dataset", "num_samples", "sym"):
            raise ConfigError("is for weight_format int4", field=f"{field}.{name}")


def chosen_format(wanted: WeightFormat | None, directory: Path, task: str) -> str:
    """The format of the weights of a converted model; None and "auto" leave the choice here."""
    if wanted not in (None, "auto"):
        return str(wanted)
    if count_parameters(directory) >= LARGE:
        return "int8"
    # Vectors and scores are compared with those that others computed.
    return "fp32" if task in ("embed", "score") else "fp16"


def count_parameters(directory: Path) -> int:
    """The number of a model's weights: exact of safetensors, else as if each had 16 bits."""
    count = 0
    for file in _files(directory):
        if file.suffix == ".safetensors":
            for name, tensor in _header(file).items():
                if name != "__metadata__":
                    count += prod(tensor["shape"])
        else:
            count += file.stat().st_size // 2
    return count


def weight_bytes(directory: Path) -> int:
    """The size of a model's weights, in Hugging Face's form or OpenVINO's."""
    files = [*_files(directory), *directory.glob("openvino_*.bin")]
    return sum(file.stat().st_size for file in files if "tokenizer" not in file.name)


def what_is_missing(directory: Path) -> str | None:
    """What the directory of a model in Hugging Face's form lacks, and how to get it."""
    missing = [] if (directory / "config.json").is_file() else ["config.json"]
    files = list(_files(directory))
    pointers = [file.name for file in files if _is_pointer(file)]
    if pointers:
        return f"{pointers[0]} is a pointer of Git LFS and no file: run `git lfs pull` there"
    wanted = _indexed(directory)
    lacking = sorted(wanted - {file.name for file in files})
    if files and not lacking and not missing:
        return None
    if lacking:
        missing += lacking[:3] + (["…"] if len(lacking) > 3 else [])
    elif not files:
        missing.append("weights (*.safetensors, or pytorch_model*.bin)")
    return (
        f"it lacks {', '.join(missing)}: copy them there, or fetch the whole model with"
        " `penstock models pull ORG/NAME`"
    )


def megabytes(size: int) -> str:
    """A size in bytes, as MB or GB."""
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def _files(directory: Path) -> Iterator[Path]:
    for pattern in _PATTERNS:
        yield from sorted(directory.glob(pattern))


def _indexed(directory: Path) -> set[str]:
    """The files that the indexes of a model in several files name."""
    names: set[str] = set()
    for pattern in ("*.safetensors.index.json", "pytorch_model*.bin.index.json"):
        for file in directory.glob(pattern):
            try:
                names.update(json.loads(file.read_bytes())["weight_map"].values())
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                continue
        if names:
            break
    return names


def _is_pointer(file: Path) -> bool:
    with file.open("rb") as opened:
        return opened.read(len(_LFS)) == _LFS


def _header(file: Path) -> dict[str, Any]:
    """What a file of safetensors says of its tensors; nothing if it is damaged, as its loader will
    say.
    """
    try:
        with file.open("rb") as opened:
            size = struct.unpack("<Q", opened.read(8))[0]
            header = json.loads(opened.read(min(size, 100 << 20)))
    except (OSError, ValueError, struct.error):
        return {}
    return header if isinstance(header, dict) else {}
