"""Serve quick start: a model behind OpenAI's API."""

import os

import httpx
from ray import serve

from penstock.compat.ray import LLMConfig, build_openai_app

URL = os.environ.get("SERVE_URL", "http://127.0.0.1:8000")
llm_config = LLMConfig(
    model_loading_config={"model_id": "demo", "model_source": "demo"},
    deployment_config={"autoscaling_config": {"min_replicas": 1, "max_replicas": 2}},
)

if __name__ == "__main__":
    serve.run(build_openai_app({"llm_configs": [llm_config]}), name="quickstart")
    body = {
        "model": "demo",
        "messages": [{"role": "user", "content": "My Solara 77 is broken."}],
        "temperature": 0,
        "max_tokens": 60,
    }
    answer = httpx.post(f"{URL}/v1/chat/completions", json=body, timeout=120).json()
    print(answer["choices"][0]["message"]["content"])
    body["stream"] = True
    with httpx.stream("POST", f"{URL}/v1/chat/completions", json=body, timeout=120) as stream:
        lines = [line for line in stream.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    print(f"{len(lines)} events")
    serve.delete("quickstart")
