"""Models in buckets: fsspec's memory file system stands for one."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from penstock import demo
from penstock.engines.disk import sources
from penstock.engines.disk.sources import copy_files, local_source, model_for
from penstock.engines.openvino.model.files import TASKS_OF
from penstock.engines.openvino.model.source import find_model
from penstock.engines.openvino.model.stated import stated
from penstock.errors import ConfigError, EngineStartError, MissingExtraError
from penstock.llm_config import LLMConfig
from penstock.serve.models.server import LLMServer


@pytest.fixture(autouse=True)
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("PENSTOCK_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(sources, "_copied", {})
    monkeypatch.setattr(sources, "_described", {})
    fs = fsspec.filesystem("memory")
    fs.pipe("/bucket/m/config.json", b"{}")
    fs.pipe("/bucket/m/deep/weights.safetensors", b"1234")
    yield fs
    fs.rm("/bucket", recursive=True)


def test_a_bucket_is_copied_once_and_again_when_it_changed(bucket: Any) -> None:
    first = Path(local_source("memory://bucket/m"))
    assert first.name.startswith("m-")
    assert (first / "deep/weights.safetensors").read_bytes() == b"1234"
    (first / "mark").touch()
    assert local_source("memory://bucket/m") == str(first)
    assert (first / "mark").exists()
    bucket.pipe("/bucket/m/config.json", b"{'a': 1}")
    second = Path(model_for("memory://bucket/m"))
    assert second != first
    assert (second / "config.json").read_bytes() == b"{'a': 1}"
    assert [path.name for path in first.parent.iterdir() if "partial" in path.name] == []


def test_a_single_file_stays_one(bucket: Any) -> None:
    bucket.pipe("/bucket/model.gguf", b"GGUF")
    assert Path(local_source("memory://bucket/model.gguf")).name == "model.gguf"
    assert Path(local_source("memory://bucket/model.gguf")).read_bytes() == b"GGUF"


def test_what_describes_a_model_is_fetched_without_its_weights(bucket: Any) -> None:
    bucket.pipe("/bucket/m/config.json", b'{"vocab_size": 7}')
    assert sources.stated_vocabulary("memory://bucket/m") is None
    sources.describe("memory://bucket/m")
    assert sources.stated_vocabulary("memory://bucket/m") == 7
    assert [path.name for path in sources.description("memory://bucket/m").iterdir()] == [
        "config.json"
    ]


def test_a_hub_describes_its_models_too(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket.pipe("/bucket/m/config.json", b'{"architectures": ["LlamaForCausalLM"]}')
    bucket.pipe("/bucket/m/modules.json", b"[]")
    asked = []

    def file_system(url: str) -> Any:
        asked.append(url)
        return bucket, "/bucket/m"

    monkeypatch.setattr(sources, "check_url", lambda *_: None)
    monkeypatch.setattr(sources, "file_system", file_system)
    for _ in range(2):
        sources.describe("org/name@v1")
    assert asked == ["hf://org/name@v1"]
    assert stated("org/name@v1", None).tasks == TASKS_OF["embed"]
    assert stated("org/name@v1", "generate").inputs == ("text",)


@pytest.mark.parametrize(
    ("config", "inputs"),
    [({"vocab_size": 7}, ()), ({"vision_config": {}}, ("text", "image"))],
)
def test_what_a_model_in_a_bucket_reads(
    bucket: Any, config: dict[str, Any], inputs: tuple[str, ...]
) -> None:
    bucket.pipe("/bucket/m/config.json", json.dumps(config).encode())
    sources.describe("memory://bucket/m")
    assert stated("memory://bucket/m", "generate").inputs == inputs


@pytest.mark.parametrize("source", ["memory://bucket/none", "nosuch://a/b", "demo", "/no/where"])
def test_what_cannot_be_read_stays_unknown(source: str) -> None:
    sources.describe(source)
    assert sources.description(source) == Path(source)


def test_a_huge_description_is_left_alone(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_MOST_DESCRIBING", 1)
    sources.describe("memory://bucket/m")
    assert sources.description("memory://bucket/m") == Path("memory://bucket/m")


def test_local_urls_are_paths(tmp_path: Path) -> None:
    assert local_source(f"file://{tmp_path}") == str(tmp_path)
    assert local_source("org/name") == "org/name"


def test_a_lost_bucket_leaves_the_copy(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    first = local_source("memory://bucket/m")

    def gone(*_: Any, **__: Any) -> Any:
        raise OSError("no route")

    with monkeypatch.context() as patched:
        patched.setattr(type(bucket), "find", gone)
        assert local_source("memory://bucket/m") == first
        shutil.rmtree(first)
        with pytest.raises(EngineStartError, match="cannot be read: OSError: no route"):
            local_source("memory://bucket/m")


@pytest.mark.parametrize(
    ("url", "kind", "why"),
    [
        ("memory://bucket/none", EngineStartError, "no files"),
        ("s3x://bucket/m", ConfigError, "unknown kind of URL 's3x://'"),
        ("pyarrow-s3://bucket/m", MissingExtraError, "s3"),
        ("azure://c@account.blob/m", MissingExtraError, "abfs"),
    ],
)
def test_what_cannot_be_copied(url: str, kind: type, why: str) -> None:
    with pytest.raises(kind, match=why):
        local_source(url)


def test_a_file_cannot_leave_its_folder(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"/bucket/m/../../x": {"size": 1}}
    with monkeypatch.context() as patched:
        patched.setattr(type(bucket), "find", lambda *_, **__: found)
        with pytest.raises(EngineStartError, match="leave its folder"):
            local_source("memory://bucket/m")


def test_the_embedded_engine_reads_a_bucket(bucket: Any) -> None:
    bucket.put(str(demo.model_path("openvino")), "/bucket/demo", recursive=True)
    found = find_model("memory://bucket/demo", None, None)
    assert (found.task, (found.path / "openvino_model.xml").is_file()) == ("generate", True)


async def test_a_server_copies_further_files_before_it_starts(tmp_path: Path) -> None:
    config = LLMConfig.from_dict(
        {
            "model_loading_config": {
                "model_id": "m",
                "model_source": {
                    "bucket_uri": "memory://bucket/m",
                    "extra_files": [
                        {
                            "bucket_uri": "memory://bucket/m/deep",
                            "destination_path": str(tmp_path / "more"),
                        }
                    ],
                },
            },
            "llm_engine": "simulated",
        }
    )
    server = LLMServer(config)
    await server.start()
    try:
        assert (tmp_path / "more/weights.safetensors").read_bytes() == b"1234"
        assert server.engine.model_source == "memory://bucket/m"
    finally:
        await server.stop()
    with pytest.raises(EngineStartError, match="no files"):
        copy_files("memory://bucket/none", str(tmp_path / "more"))
