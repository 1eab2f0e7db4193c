"""The engine under a processor and behind the server."""

from typing import Any

import pytest

from penstock import demo
from penstock.batch import SGLangEngineProcessorConfig, build_processor
from penstock.errors import ConfigError
from penstock.llm_config import LLMConfig
from penstock.serve.deployment import SGLangServer
from penstock.serve.models.local import build_local_handles
from penstock.testing import chat_request


def test_a_processor_runs_on_it(stand_in):
    config = SGLangEngineProcessorConfig(
        model_source="demo",
        engine_kwargs={"context_length": 1024, "max_running_requests": 4},
        chat_template_stage={},  # stages of their own, which ask the engine
        tokenize_stage={},
        detokenize_stage={},
    )
    processor = build_processor(
        config,
        preprocess=lambda row: {
            "messages": [{"role": "user", "content": row["ticket"]}],
            "sampling_params": {"temperature": 0, "max_tokens": 12, "ignore_eos": True},
        },
        postprocess=lambda row: {
            "ticket": row["ticket"],
            "text": row["generated_text"],
            "made": row["generated_tokens"],
        },
    )
    rows = list(processor([{"ticket": f"ticket {number}"} for number in range(20)]))
    assert [row["ticket"] for row in rows] == [f"ticket {number}" for number in range(20)]
    assert all(len(row["made"]) == 12 and row["text"] for row in rows)


async def test_a_server_with_adapters_starts_it_for_them(stand_in):
    lora = {
        "adapters": {"german": str(demo.adapter_path("german"))},
        "max_num_adapters_per_replica": 2,
    }
    loading = {"model_id": "m", "model_source": "demo"}
    config = LLMConfig.from_dict(
        {"model_loading_config": loading, "llm_engine": "SGLang", "lora_config": lora}
    )
    handle: Any = build_local_handles([config])["m"]
    await handle.start()
    try:
        assert handle.server.engine.options["max_loras_per_batch"] == 2
        deltas = [delta async for delta in handle.chat(chat_request("hallo", adapter="german"))]
        assert deltas[-1].finish_reason in ("stop", "length")
    finally:
        await handle.stop()


def rays_example(server_cls: Any) -> LLMConfig:
    """The configuration in Ray's example of SGLang, with another model."""
    fields: dict[str, Any] = {
        "model_loading_config": {"model_id": "m", "model_source": "demo"},
        "deployment_config": {"autoscaling_config": {"min_replicas": 1, "max_replicas": 2}},
        "server_cls": server_cls,
        "engine_kwargs": {"model_path": "demo", "tp_size": 1, "mem_fraction_static": 0.8},
    }
    return LLMConfig(**fields)


@pytest.mark.parametrize(
    "server_cls", [SGLangServer, "ray.llm._internal.serve.engines.sglang:SGLangServer"]
)
async def test_rays_server_of_it_is_a_server_here(stand_in, server_cls):
    config = rays_example(server_cls)
    assert config.engine_name == "sglang"
    assert config.engine_reason == "SGLangServer runs on it"
    handle: Any = build_local_handles([config])["m"]
    assert handle.server.engine.name == "sglang"


async def test_that_server_runs_on_it_whatever_the_configuration_leaves_out(stand_in):
    loading: Any = {"model_id": "m", "model_source": "demo"}
    config = LLMConfig(model_loading_config=loading, engine_kwargs={"tp_size": 2})
    options = SGLangServer.get_deployment_options(config)
    assert options["placement_group_bundles"] == [{"CPU": 1.0, "GPU": 2.0}]
    server = await SGLangServer(config)
    try:
        asked = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
        (response,) = [one async for one in await server.chat(asked)]
        assert response.usage.completion_tokens == 4
        assert server.engine is not None
        assert server.engine.name == "sglang"
    finally:
        await server.stop()


def test_another_engine_than_that_of_its_server_is_refused():
    loading: Any = {"model_id": "m"}
    with pytest.raises(ConfigError, match="llm_engine: SGLangServer runs on sglang"):
        LLMConfig(model_loading_config=loading, llm_engine="vLLM", server_cls=SGLangServer)


def test_rays_names_of_its_sampling_parameters_are_known(stand_in):
    processor = build_processor(
        SGLangEngineProcessorConfig(
            model_source="demo", engine_kwargs={"mem_fraction_static": 0.8}
        ),
        preprocess=lambda row: {
            "messages": [{"role": "user", "content": row["prompt"]}],
            "sampling_params": {"temperature": 0.7, "max_new_tokens": 5, "ignore_eos": True},
        },
        postprocess=lambda row: {
            "prompt": row["prompt"],
            "response": row["generated_text"],
            "made": row["num_generated_tokens"],
        },
    )
    (row,) = processor([{"prompt": "What is the capital of France?"}])
    assert row["made"] == 5
