"""The checks that need no vLLM: a source tree with its argument classes stands in for the installed
package.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from penstock.engines.base import Capabilities, Stated
from penstock.engines.vllm import options
from penstock.engines.vllm.engine import VLLMEngine
from penstock.engines.vllm.options import Installed, check_options, check_version, version_note
from penstock.errors import ConfigError, EngineStartError, MissingExtraError, ModelNotFoundError
from penstock.types import CompletionRequest, Sampling

ARGUMENTS = {
    "vllm/engine/arg_utils.py": """
class EngineArgs:
    model: str = ""
    max_num_seqs: int = 1
    enable_lora: bool = False
    max_loras: int = 1
    max_logprobs: int = 20
    max_cpu_loras: int | None = None
    kv_cache_memory_bytes: int | None = None
    gpu_memory_utilization: float = 0.9
    profiler_config: dict | None = None
    structured_outputs_config: dict | None = None
    _private: int = 0
    def method(self): ...
    runner: str = "auto"
    convert: str = "auto"
class AsyncEngineArgs(EngineArgs):
    enable_log_requests: bool = False
""",
    "vllm/entrypoints/launchers/cli_args.py": """
class BaseFrontendArgs:
    tool_call_parser: str | None = None
class FrontendArgs(BaseFrontendArgs):
    port: int = 8000
""",
}


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Install a stand-in of a version."""
    for name, text in ARGUMENTS.items():
        file = Path(tmp_path, name)
        file.parent.mkdir(parents=True)
        file.write_text(text)

    def make(version="0.32.0", cpu=False):
        monkeypatch.setattr(options, "installed", lambda: Installed(version, tmp_path, cpu))

    make()
    return make


def test_determinism_is_for_the_kernels_of_gpus(install):
    options = check_options({"deterministic": True, "max_num_seqs": 2}, "m")
    assert options.deterministic
    assert "deterministic" not in {**options.engine, **options.frontend}
    assert not check_options({"deterministic": False}, "m").deterministic
    install(cpu=True)
    assert not check_options({"deterministic": False}, "m").deterministic
    with pytest.raises(ConfigError, match=r"^deterministic: .* for GPUs.*The openvino engine can"):
        check_options({"deterministic": True}, "m")
    with pytest.raises(ConfigError, match=r"engine_kwargs\.deterministic: must be true or false"):
        check_options({"deterministic": "yes"}, "m")


@pytest.mark.parametrize("echo", [False, True])
async def test_a_deterministic_engine_gives_completions_a_seed(install, echo):
    engine = VLLMEngine("m", engine_kwargs={"deterministic": True})
    engine.capabilities = Capabilities(frozenset({"completions"}), 64, 1)
    asked = []

    class Prompts:
        defaults: ClassVar[dict[str, float]] = {}

        async def prepare_completion(self, request, sampling, shown):
            asked.append((request.sampling.seed, sampling.seed))
            return SimpleNamespace()

    request = CompletionRequest("a", Sampling(temperature=1.0), echo=echo)
    running: Any = SimpleNamespace(prompts=Prompts())
    await engine._prepare(running, request)
    ((one, other),) = asked
    assert one == other
    assert one is not None


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"max_num_seq": 4}, r"engine_kwargs\.max_num_seq.*Did you mean 'max_num_seqs'"),
        ({"tool_call_parsers": "x"}, "Did you mean 'tool_call_parser'"),
        ({"port": 80}, "unknown key 'port'"),
        ({"_private": 1}, "unknown key"),
        ({"model": "x"}, "engine_kwargs.model"),
    ],
)
def test_a_wrong_key_is_known_before_anything_starts(install, given, told):
    with pytest.raises(ConfigError, match=told):
        VLLMEngine("model", engine_kwargs=given)


def test_arguments_go_where_they_belong(install):
    made = check_options(
        {"max_num_seqs": 4, "tool_call_parser": "hermes", "enable_log_requests": True}, "model"
    )
    assert made.frontend == {"tool_call_parser": "hermes"}
    compact = {"structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True}}
    assert made.engine == {
        "disable_log_stats": True,
        "max_num_seqs": 4,
        "enable_log_requests": True,
        **compact,
    }


def test_json_has_no_white_space_unless_it_is_asked_for(install):
    compact = {"backend": "xgrammar", "disable_any_whitespace": True}
    for model in ("model", "demo"):
        assert check_options({}, model).engine["structured_outputs_config"] == compact
    for asked in ({"backend": "auto"}, {"backend": "outlines"}):
        assert (
            check_options({"structured_outputs_config": asked}, "model").engine[
                "structured_outputs_config"
            ]
            == asked
        )
    spaced = {"backend": "guidance", "disable_any_whitespace": False}
    assert (
        check_options({"structured_outputs_config": spaced}, "model").engine[
            "structured_outputs_config"
        ]
        == spaced
    )


def test_a_cpu_build_takes_a_bounded_cache_and_keeps_one_adapter_slot_empty(install):
    install(cpu=True)
    given = {"enable_lora": True, "max_loras": 2, "max_cpu_loras": 2}
    engine = check_options(given, "model").engine
    assert (engine["max_loras"], engine["max_cpu_loras"], engine["kv_cache_memory_bytes"]) == (
        3,
        3,
        1 << 30,
    )
    assert (
        "kv_cache_memory_bytes"
        not in check_options({"gpu_memory_utilization": 0.5}, "model").engine
    )
    assert check_options({"kv_cache_memory_bytes": 5}, "model").engine["kv_cache_memory_bytes"] == 5


def test_the_process_that_serves_is_not_traced_unless_it_is_asked_for(install):
    install()
    given: dict[str, dict[str, object]] = {"profiler_config": {"profiler": "torch"}}
    assert check_options(given, "model").engine["profiler_config"] == {
        "profiler": "torch",
        "ignore_frontend": True,
    }
    assert given == {"profiler_config": {"profiler": "torch"}}
    asked = {"profiler_config": {**given["profiler_config"], "ignore_frontend": False}}
    assert check_options(asked, "model").engine["profiler_config"]["ignore_frontend"] is False


@pytest.mark.parametrize("version", ["0.28.1", "0.9.2"])
def test_an_old_version_is_refused_by_name(install, version):
    install(version)
    with pytest.raises(EngineStartError, match=f"vLLM {version} is not supported.*0.29 to 0.32"):
        check_version()


def test_a_newer_version_is_tried_and_named_when_it_fails(install):
    for version in ("0.29.0", "0.32.1"):
        install(version)
        check_version()
        assert version_note() == ""
    install("0.40.0")
    check_version()
    assert "0.40.0" in version_note()


async def test_an_engine_checks_the_version_when_it_starts(install):
    install("0.20.0")
    with pytest.raises(EngineStartError, match=r"0\.20\.0"):
        await VLLMEngine("model").start()


def test_without_vllm_the_command_that_installs_it_is_named(monkeypatch):
    monkeypatch.setattr(options, "find_spec", lambda name: None)
    options.installed.cache_clear()
    try:
        with pytest.raises(MissingExtraError, match=r"pip install 'penstock\[vllm\]'"):
            VLLMEngine("model")
    finally:
        options.installed.cache_clear()


def test_the_runner_states_the_tasks(install):
    assert VLLMEngine("org/model").stated() == Stated(max_top_logprobs=20)
    for given, most in ((5, 5), (-1, None)):
        engine = VLLMEngine("m", engine_kwargs={"max_logprobs": given})
        assert engine.stated().max_top_logprobs == most
    assert VLLMEngine("demo").stated().vocabulary == 1024
    pooling = VLLMEngine("m", engine_kwargs={"runner": "pooling"}).stated().tasks
    assert pooling is not None
    assert "embeddings" in pooling
    assert "chat" not in pooling
    assert VLLMEngine("m", engine_kwargs={"convert": "embed"}).stated().tasks == pooling
    generate = VLLMEngine("m", engine_kwargs={"runner": "generate"}).stated().tasks
    assert generate is not None
    assert "chat" in generate
    assert VLLMEngine("m", engine_kwargs={"runner": "auto"}).stated().tasks is None


def test_the_context_is_known_from_options_and_local_files(install, tmp_path):
    assert VLLMEngine("demo").stated_context_length() == 4096
    assert VLLMEngine("demo", engine_kwargs={"max_num_seqs": 2}).stated_context_length() == 4096
    assert VLLMEngine("org/model").stated_context_length() is None
    (tmp_path / "config.json").write_text('{"text_config": {"max_position_embeddings": 77}}')
    assert VLLMEngine(str(tmp_path)).stated_context_length() == 77
    (tmp_path / "config.json").write_text("[]")
    assert VLLMEngine(str(tmp_path)).stated_context_length() is None


def test_adapters_are_checked_when_the_engine_is_made(install, tmp_path):
    with pytest.raises(ModelNotFoundError, match="no directory"):
        VLLMEngine("model", adapters={"a": str(tmp_path / "nothing")})
