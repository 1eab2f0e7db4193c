"""A replica of two ranks, which live and die together."""

import os

import httpx
from ray import serve

from penstock.compat.ray import LLMConfig, build_dp_openai_app

URL = os.environ.get("SERVE_URL", "http://127.0.0.1:8000")
llm_config = LLMConfig(
    model_loading_config={"model_id": "demo", "model_source": "demo"},
    engine_kwargs={
        "data_parallel_size": 2,
        "kv_cache_memory_bytes": 64 << 20,
        "inference_precision": "f32",
    },
)

if __name__ == "__main__":
    serve.run(build_dp_openai_app({"llm_config": llm_config}), name="dp")
    body = {"model": "demo", "prompt": "Where is my order?", "max_tokens": 16, "temperature": 0}
    answers = [httpx.post(f"{URL}/v1/completions", json=body, timeout=120) for _ in range(4)]
    print({answer.json()["choices"][0]["text"] for answer in answers})
    serve.delete("dp")
