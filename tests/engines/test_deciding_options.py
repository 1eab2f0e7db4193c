"""Which options of an engine decide what it answers, and which only cost memory or time.

Every option is in one of the two: a new one fails here until somebody has decided.
"""

import msgspec
import pytest

from penstock.engines.base import ENGINES, engine_class, with_deterministic
from penstock.engines.openvino.options import OpenVINOOptions
from penstock.engines.remote.options import RemoteOptions
from penstock.engines.sglang import options as sglang_options
from penstock.engines.simulated.options import SimulatedOptions
from penstock.engines.vllm import options as vllm_options
from penstock.errors import ConfigError, MissingExtraError

DECIDE = {
    "openvino": {
        *(
            "task",
            "device",
            "tokenizer",
            "max_model_len",
            "kv_cache_precision",
            "inference_precision",
        ),
        *("prompt_lookup", "prompt_lookup_max", "draft_model", "num_speculative_tokens"),
        *("draft_device", "assistant_confidence_threshold"),
        *("cache_eviction", "sparse_attention"),
        *("embedding_pooling", "embedding_normalize", "deterministic", "properties"),
        *("max_images", "max_image_bytes", "max_image_pixels", "image_urls"),
        *("video_frames", "max_video_pixels"),
        *("max_audio_bytes", "max_audio_seconds", "word_timestamps", "voices"),
        *("weight_format", "conversion", "query_instruction", "document_instruction"),
        *("tool_call_parser", "reasoning_parser"),
        *("chat_template", "default_chat_template_kwargs"),
    },
    "remote": {"tasks", "max_model_len", "max_top_logprobs", "structured", "extra_body"},
    "simulated": {
        *("seed", "output_tokens", "max_model_len", "deterministic"),
        *("tool_call_parser", "reasoning_parser"),
    },
}
OPTIONS: dict[str, type[msgspec.Struct]] = {
    "openvino": OpenVINOOptions,
    "remote": RemoteOptions,
    "simulated": SimulatedOptions,
}


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_either_decides_or_costs(name):
    costs, decide = engine_class(name).costs_only, DECIDE[name]
    assert not costs & decide
    assert costs | decide == {field.name for field in msgspec.structs.fields(OPTIONS[name])}


@pytest.mark.parametrize("name", ["vllm", "sglang"])
def test_what_is_declared_is_known_to_the_installed_library(name):
    try:
        if name == "vllm":
            version, versions = vllm_options.installed().version, vllm_options.VERSIONS
            known = frozenset().union(*vllm_options.known_names(vllm_options.installed().root))
        else:
            version, versions = sglang_options.version(), sglang_options.VERSIONS
            known = sglang_options.argument_names(sglang_options.package())
    except MissingExtraError:
        pytest.skip(f"{name} is not installed")
    if not version.startswith(".".join(map(str, versions.newest))):
        pytest.skip("an older one knows fewer")
    assert engine_class(name).costs_only <= known


@pytest.mark.parametrize(
    ("name", "cost", "decides"),
    [
        ("vllm", "gpu_memory_utilization", "dtype"),
        ("vllm", "tensor_parallel_size", "quantization"),
        ("vllm", "kv_cache_memory_bytes", "kv_cache_dtype"),
        ("sglang", "mem_fraction_static", "dtype"),
        ("sglang", "tp_size", "context_length"),
        ("sglang", "max_running_requests", "random_seed"),
        ("vllm", "max_num_seqs", "an_option_of_tomorrow"),
        ("sglang", "chunked_prefill_size", "an_option_of_tomorrow"),
        ("remote", "base_url", "extra_body"),
        ("simulated", "error_rate", "seed"),
        ("openvino", "num_threads", "device"),
    ],
)
def test_unnamed_options_decide(name, cost, decides):
    assert engine_class(name).deciding_options({cost: 1, decides: 2}) == {decides: 2}


def test_properties_decide_but_for_those_that_cost():
    deciding = engine_class("openvino").deciding_options
    given = {
        "CACHE_DIR": "/c",
        "NUM_STREAMS": 1,
        "KV_CACHE_PRECISION": "u8",
        "performance_hint": "LATENCY",
    }
    assert deciding({"properties": given}) == {"properties": {"KV_CACHE_PRECISION": "u8"}}
    assert deciding({"properties": {"CACHE_DIR": "/c"}}) == deciding({}) == {}


@pytest.mark.parametrize("name", sorted(ENGINES.keys() - {"remote"}))
def test_determinism_decides(name):
    cls = engine_class(name)
    options = with_deterministic(cls, {"max_num_seqs": 4})
    assert options.items() >= {"max_num_seqs": 4}.items()
    assert cls.deciding_options(options).items() >= cls.deterministic_options().items()


def test_an_engine_that_cannot_promise_it_is_named():
    with pytest.raises(ConfigError, match=r"^deterministic: the remote engine cannot promise it"):
        with_deterministic(engine_class("remote"), {})


@pytest.mark.parametrize(
    ("name", "option"),
    [("openvino", "deterministic"), ("sglang", "enable_deterministic_inference")],
)
def test_the_opposite_beside_it_is_refused(name, option):
    with pytest.raises(ConfigError, match=rf"engine_kwargs\.{option}: does not go together"):
        with_deterministic(engine_class(name), {option: False})
