"""One model whose prompts are computed on other replicas than its tokens."""

import os

import httpx
from ray import serve

from penstock.compat.ray import LLMConfig, build_pd_openai_app

URL = os.environ.get("SERVE_URL", "http://127.0.0.1:8000")
SIDE = {
    "model_loading_config": {"model_id": "m", "model_source": "simulated"},
    "llm_engine": "simulated",  # on vLLM: its NixlConnector
    "engine_kwargs": {"kv_transfer_config": {"kv_connector": "SimulatedConnector"}},
}

if __name__ == "__main__":
    app = build_pd_openai_app(
        {"prefill_config": LLMConfig(**SIDE), "decode_config": LLMConfig(**SIDE)}
    )
    serve.run(app, name="pd")
    body = {"model": "m", "prompt": "A long prompt. " * 40, "max_tokens": 16, "temperature": 0}
    answer = httpx.post(f"{URL}/v1/completions", json=body, timeout=120).json()
    print(answer["choices"][0]["text"])
    print(", ".join(serve.status().applications["pd"].deployments))
    serve.delete("pd")
