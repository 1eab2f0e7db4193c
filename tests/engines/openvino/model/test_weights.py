"""The weights of a model to convert: their number, what is missing, and the format they get."""

import json
import struct

import pytest

from penstock.engines.openvino.model.weights import (
    Quantization,
    chosen_format,
    count_parameters,
    weight_bytes,
    what_is_missing,
)
from penstock.engines.openvino.options import OpenVINOOptions
from penstock.errors import ConfigError


def safetensors(path, *shapes, name="model.safetensors"):
    """A file whose header tells of tensors that it need not have."""
    tensors = {f"t{place}": {"dtype": "F16", "shape": shape} for place, shape in enumerate(shapes)}
    header = json.dumps({"__metadata__": {"format": "pt"}, **tensors}).encode()
    (path / name).write_bytes(struct.pack("<Q", len(header)) + header)
    (path / "config.json").write_text("{}")
    return path


def test_parameters_are_counted_in_the_headers(tmp_path):
    safetensors(tmp_path, [3, 4], [5], name="a.safetensors")
    safetensors(tmp_path, [2, 2, 2], name="b.safetensors")
    (tmp_path / "pytorch_model.bin").write_bytes(b"x" * 20)
    assert count_parameters(tmp_path) == 12 + 5 + 8 + 10
    (tmp_path / "c.safetensors").write_bytes(b"damaged")
    assert count_parameters(tmp_path) == 35
    assert weight_bytes(tmp_path) == sum(
        file.stat().st_size for file in tmp_path.iterdir() if file.suffix != ".json"
    )


@pytest.mark.parametrize(
    ("wanted", "rows", "task", "chosen"),
    [
        (None, 10, "generate", "fp16"),
        ("auto", 10, "embed", "fp32"),
        (None, 10, "score", "fp32"),
        (None, 10**6, "generate", "int8"),
        ("auto", 10**6, "embed", "int8"),
        ("fp16", 10**6, "generate", "fp16"),
        ("int4", 10, "generate", "int4"),
    ],
)
def test_the_format(tmp_path, wanted, rows, task, chosen):
    assert chosen_format(wanted, safetensors(tmp_path, [rows, 1000]), task) == chosen


class TestWhatIsMissing:
    def test_a_whole_model(self, tmp_path):
        assert what_is_missing(safetensors(tmp_path, [1])) is None

    def test_a_part_of_a_model_in_several_files(self, tmp_path):
        safetensors(tmp_path, [1], name="model-00001-of-00002.safetensors")
        names = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
        said = str(what_is_missing(tmp_path))
        assert said.startswith("it lacks model-00002-of-00002.safetensors: copy")
        assert "penstock models pull" in said

    def test_pointers_of_git_lfs(self, tmp_path):
        (tmp_path / "config.json").write_text("{}")
        (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
        assert "git lfs pull" in str(what_is_missing(tmp_path))


class TestQuantization:
    def test_arguments_of_the_exporter(self):
        given = Quantization(awq=True, dataset="wikitext2", group_size=-1, ratio=0.8)
        assert given.arguments() == [
            *("--awq", "--dataset", "wikitext2", "--group-size", "-1", "--ratio", "0.8")
        ]
        assert Quantization().arguments() == []

    @pytest.mark.parametrize(
        ("weight_format", "quantization", "field"),
        [
            (None, {"awq": True}, "engine_kwargs.conversion"),
            ("fp16", {"ratio": 0.5}, "engine_kwargs.conversion"),
            ("int8", {"awq": True}, "engine_kwargs.conversion.awq"),
        ],
    )
    def test_what_has_no_place_in_the_format_is_refused(self, weight_format, quantization, field):
        with pytest.raises(ConfigError) as caught:
            OpenVINOOptions(weight_format=weight_format, conversion=Quantization(**quantization))
        assert caught.value.field == field
