"""Prompts with a common beginning go to the replica that has it in its cache."""

import os

import httpx
from ray import serve

from penstock.compat.ray import LLMConfig, build_openai_app

URL = os.environ.get("SERVE_URL", "http://127.0.0.1:8000")
llm_config = LLMConfig(
    model_loading_config={"model_id": "m", "model_source": "simulated"},
    llm_engine="simulated",
    deployment_config={
        "num_replicas": 2,
        "request_router_config": {
            "request_router_class": "penstock.serve.request_router.PrefixCacheAffinityRouter"
        },
    },
)

if __name__ == "__main__":
    serve.run(build_openai_app({"llm_configs": [llm_config]}), name="prefix")
    cached = 0
    for number in range(8):
        beginning = f"Conversation {number % 4}: " + "the same words, again and again. " * 40
        body = {"model": "m", "prompt": f"{beginning}{number}", "max_tokens": 2, "temperature": 0}
        usage = httpx.post(f"{URL}/v1/completions", json=body, timeout=120).json()["usage"]
        cached += usage["prompt_tokens_details"]["cached_tokens"] > 0
    print(f"{cached} of 8 prompts began as one in the cache")
    assert cached == 4
    serve.delete("prefix")
