"""A model with LoRA adapters, each named in a request's `model`."""

import os

import httpx
from ray import serve

from penstock import demo
from penstock.compat.ray import LLMConfig, LoraConfig, build_openai_app

URL = os.environ.get("SERVE_URL", "http://127.0.0.1:8000")
ADAPTERS = demo.adapter_path("german").parent  # a folder or a bucket with one folder an adapter
llm_config = LLMConfig(
    model_loading_config={"model_id": "demo", "model_source": "demo"},
    lora_config=LoraConfig(dynamic_lora_loading_path=str(ADAPTERS), max_num_adapters_per_replica=2),
)

if __name__ == "__main__":
    serve.run(build_openai_app({"llm_configs": [llm_config]}), name="lora")
    models = httpx.get(f"{URL}/v1/models", timeout=120).json()["data"]
    print("models:", ", ".join(model["id"] for model in models))
    for name in ("demo", "demo:german", "demo:summary"):
        body = {
            "model": name,
            "messages": [{"role": "user", "content": "My Solara 77 is broken. Order 4711."}],
            "temperature": 0,
            "max_tokens": 60,
        }
        answer = httpx.post(f"{URL}/v1/chat/completions", json=body, timeout=120).json()
        print(f"{name}: {answer['choices'][0]['message']['content']}")
    serve.delete("lora")
