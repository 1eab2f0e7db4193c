"""A model that lies in a bucket. Any URL of fsspec's will do: s3://, gs://, abfss://, file:// …"""

import os

import httpx
from ray import serve

from penstock import demo
from penstock.compat.ray import CloudMirrorConfig, LLMConfig, ModelLoadingConfig, build_openai_app

URL = os.environ.get("SERVE_URL", "http://127.0.0.1:8000")
BUCKET = os.environ.get("BUCKET", f"file://{demo.model_path()}")
llm_config = LLMConfig(
    model_loading_config=ModelLoadingConfig(
        model_id="demo", model_source=CloudMirrorConfig(bucket_uri=BUCKET)
    ),
)

if __name__ == "__main__":
    serve.run(build_openai_app({"llm_configs": [llm_config]}), name="bucket")
    body = {
        "model": "demo",
        "messages": [{"role": "user", "content": "My Solara 77 is broken."}],
        "temperature": 0,
        "max_tokens": 60,
    }
    answer = httpx.post(f"{URL}/v1/chat/completions", json=body, timeout=120).json()
    print("from the bucket:", answer["choices"][0]["message"]["content"])
    serve.delete("bucket")
