"""The engine under a processor and behind the server."""

from typing import Any

from penstock import demo
from penstock.batch import SGLangEngineProcessorConfig, build_processor
from penstock.llm_config import LLMConfig
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
