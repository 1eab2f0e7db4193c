"""Two replicas share one GPU: each reserves half of it."""

import os

import httpx
import ray
from ray import serve

from penstock.compat.ray import LLMConfig, build_openai_app

URL = os.environ.get("SERVE_URL", "http://127.0.0.1:8000")
llm_config = LLMConfig(
    model_loading_config={"model_id": "m", "model_source": "simulated"},
    llm_engine="simulated",
    placement_group_config={"bundles": [{"GPU": 0.5}]},
    deployment_config={"num_replicas": 2},
)

if __name__ == "__main__":
    if "RAY_ADDRESS" not in os.environ:
        ray.init(num_gpus=1)  # Ray counts it; the simulated engine needs none
    serve.run(build_openai_app({"llm_configs": [llm_config]}), name="fraction")
    body = {"model": "m", "prompt": "Hello", "max_tokens": 4}
    print(httpx.post(f"{URL}/v1/completions", json=body, timeout=120).json()["choices"][0]["text"])
    print(f"GPUs left: {ray.available_resources().get('GPU', 0.0)}")
    serve.delete("fraction")
