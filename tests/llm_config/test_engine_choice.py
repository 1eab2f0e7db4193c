from importlib.util import find_spec
from pathlib import Path

import pytest

from penstock.engines.base import ENGINES
from penstock.engines.openvino.options import OpenVINOOptions
from penstock.engines.vllm.options import known_names
from penstock.errors import ConfigError
from penstock.llm_config import LLMConfig
from penstock.llm_config.engine_choice import ENGINE_NAMES, VLLM_NAMES, unknown_engine


def config(**fields):
    return LLMConfig(**{"model_loading_config": {"model_id": "m"}, **fields})


@pytest.mark.parametrize(
    ("fields", "engine", "why"),
    [
        ({}, "openvino", "nothing in the configuration"),
        ({"engine_kwargs": {"max_model_len": 8192}}, "openvino", "nothing"),
        ({"engine_kwargs": {"data_parallel_size": 2}}, "openvino", "nothing"),
        ({"accelerator_config": {"kind": "cpu"}}, "openvino", "nothing"),
        ({"placement_group_config": {"bundles": [{"CPU": 4}]}}, "openvino", "nothing"),
        ({"import_path": "mine.llm:build_openai_app"}, "openvino", "nothing"),
        ({"import_path": "ray.serve.llms:build"}, "openvino", "nothing"),
        ({"import_path": "ray.serve.llm:build_openai_app"}, "vllm", "import_path is Ray's"),
        ({"import_path": "ray.serve.llm.build_pd_openai_app"}, "vllm", "import_path"),
        ({"engine_kwargs": {"max_num_seqs": 4, "enforce_eager": True}}, "vllm", "enforce_eager"),
        ({"accelerator_type": "A10G"}, "vllm", "accelerator_type is A10G"),
        ({"accelerator_config": {"kind": "gpu"}}, "vllm", "asks for GPUs"),
        ({"placement_group_config": {"bundle_per_worker": {"GPU": 0.5}}}, "vllm", "asks for GPUs"),
        ({"accelerator_type": "L4", "llm_engine": "sglang"}, "sglang", "llm_engine says so"),
        ({"import_path": "ray.serve.llm:x", "llm_engine": "openvino"}, "openvino", "says so"),
    ],
)
def test_the_engine_and_why(fields, engine, why):
    chosen = config(**fields)
    assert chosen.engine_name == engine
    assert why in chosen.engine_reason


def test_an_unknown_engine_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match="Did you mean 'vllm'") as caught:
        config(llm_engine="vLLMm")
    assert caught.value.field == "llm_engine"


def test_a_batch_api_is_for_jobs():
    with pytest.raises(ConfigError, match="only jobs: `penstock run --engine openai-batch`"):
        config(llm_engine="openai-batch")


def test_a_job_gets_the_nearest_batch_api():
    assert "Did you mean 'openai-batch'" in str(unknown_engine("opnai-batch", job=True))
    assert "openai-batch" not in str(unknown_engine("opnai-batch", job=False).hint)


def test_the_names_are_those_of_the_table_of_engines():
    assert set(ENGINES) == ENGINE_NAMES


def test_no_option_of_the_embedded_engine_means_vllm():
    assert not VLLM_NAMES & set(OpenVINOOptions.__struct_fields__)


@pytest.mark.vllm
def test_the_options_are_vllms():
    vllm = find_spec("vllm")
    assert vllm is not None
    assert vllm.origin is not None
    engine, frontend = known_names(Path(vllm.origin).parents[1])
    assert engine | frontend >= VLLM_NAMES
