"""Models on disk: which files of a hub's repository are taken, the list, and what is removed."""

import pytest

from penstock.engines.disk.cache import (
    cached_model,
    cached_models,
    chosen_files,
    hub_cache,
    pull,
    remove_model,
)
from penstock.errors import ConfigError, MissingExtraError, ModelNotFoundError
from penstock.lazy import EXTRAS

FILES = [
    *("config.json", "tokenizer.json", "README.md", "1_Pooling/config.json"),
    *("model.safetensors", "pytorch_model.bin", "onnx/model.onnx", "original/a.safetensors"),
]


@pytest.fixture(autouse=True)
def disk(tmp_path, monkeypatch):
    """A cache with a model of each kind."""
    monkeypatch.setenv("PENSTOCK_CACHE_DIR", str(tmp_path / "ours"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    for name, size in (
        ("ours/converted/llama-0a1b/openvino_model.bin", 3),
        ("ours/models/bert-2c3d/model.safetensors", 4),
        ("hf/hub/models--org--name/blobs/abc", 5),
        ("hf/hub/models--org--name/snapshots/1/config.json", 0),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x" * size)
    link = tmp_path / "hf/hub/models--org--name/snapshots/1/model.safetensors"
    link.symlink_to("../../blobs/abc")
    (tmp_path / "ours/converted/llama-0a1b.lock").touch()
    (tmp_path / "ours/converted/half.partial-1").mkdir()
    return tmp_path


class TestChosenFiles:
    def test_one_form_of_weights_and_what_goes_with_it(self):
        assert chosen_files("m", FILES, ()) == [*FILES[:2], FILES[3], "model.safetensors"]
        older = [file for file in FILES if not file.endswith("safetensors")]
        assert chosen_files("m", older, ())[-1] == "pytorch_model.bin"
        assert chosen_files("m", ["config.json", "onnx/model.onnx"], ())[-1] == "onnx/model.onnx"

    def test_parts_of_sentence_transformers_by_their_folders(self):
        parts = [f"{name}/config.json" for name in ("1_SpladePooling", "2_Dense_1024", "onnx")]
        found = chosen_files("m", ["model.safetensors", *parts], ())
        assert found == [*parts[:2], "model.safetensors"]

    def test_patterns(self):
        assert chosen_files("m", FILES, ["onnx/*", "config.json"]) == [FILES[0], FILES[6]]
        with pytest.raises(ConfigError, match="no such file; it has"):
            chosen_files("m", FILES, ["*.gguf"])

    def test_gguf_files(self):
        assert chosen_files("m", ["a.gguf", "README.md"], ()) == ["a.gguf"]
        with pytest.raises(ConfigError, match=r"several: a.gguf, b.gguf; name one"):
            chosen_files("m", ["a.gguf", "b.gguf"], ())
        with pytest.raises(ConfigError, match="no weights"):
            chosen_files("m", ["README.md"], ())


class TestDisk:
    def test_all_kinds_are_listed_with_what_they_take(self):
        found = {(model.name, model.kind): model.nbytes for model in cached_models()}
        assert found == {("llama-0a1b", "converted"): 3, ("bert-2c3d", "bucket"): 4} | {
            ("org/name", "hub"): 5
        }

    def test_files_of_a_model(self):
        assert list(cached_model("org/name").files()) == [
            ("1/config.json", 0),
            ("1/model.safetensors", 5),
        ]

    def test_removal(self, disk):
        remove_model(cached_model("llama-0a1b"))
        assert not list((disk / "ours/converted").glob("llama*"))
        remove_model(cached_model("org/name"))
        assert not list(hub_cache().glob("models--*"))

    def test_an_unknown_name(self):
        with pytest.raises(ModelNotFoundError, match="Did you mean 'org/name'"):
            cached_model("org/nam")


def test_without_the_extra_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    assert EXTRAS["huggingface_hub"] == "hf"
    with pytest.raises(MissingExtraError, match=r"pip install 'penstock\[hf\]'"):
        pull("org/name")
