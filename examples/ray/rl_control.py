"""What a trainer asks of a model between two rollouts: pause, reset its cache, sleep, wake up."""

import os

import httpx
from ray import serve

from penstock.compat.ray import LLMConfig
from penstock.serve import build_dev_openai_app

URL = os.environ.get("SERVE_URL", "http://127.0.0.1:8000")
llm_config = LLMConfig(
    model_loading_config={"model_id": "m", "model_source": "simulated"},
    llm_engine="simulated",
)


def control(route, **options):
    """Ask something of all replicas."""
    body = {"model": "m", "options": options}
    reply = httpx.post(f"{URL}/{route}", json=body, timeout=120)
    print(route, reply.status_code)
    reply.raise_for_status()


def rollout():
    """The status of one request."""
    body = {"model": "m", "prompt": "An episode", "max_tokens": 4}
    return httpx.post(f"{URL}/v1/completions", json=body, timeout=120).status_code


if __name__ == "__main__":
    serve.run(build_dev_openai_app({"llm_configs": [llm_config]}), name="rl")
    assert rollout() == 200
    control("pause", mode="wait")
    control("reset_prefix_cache")
    control("resume")
    control("sleep", level=1)
    assert rollout() == 503
    control("wakeup")
    assert rollout() == 200
    print("rolled out again")
    serve.delete("rl")
