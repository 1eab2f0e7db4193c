"""On a real Ray: what wakes a model that is scaled to zero, and what does not."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import httpx
import msgspec
import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("ray")
    pytest.importorskip("ray.serve")
    from ray import serve
    from ray.experimental import internal_kv

from penstock.engines.base import Capabilities
from penstock.engines.simulated.engine import SimulatedEngine
from penstock.ray.replicas import ABLE
from penstock.serve import build_dev_openai_app
from ray_cluster import PATIENCE_S, free_port, own_cluster
from replica_cluster import config
from waking import BEYOND, BROKEN, CHAT, CONTROLS, GETS, MALFORMED, NO_MODELS

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore")]
ZERO = {"min_replicas": 0, "max_replicas": 1, "upscale_delay_s": 0, "look_back_period_s": 1}


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    """A client of Ray's proxy, in front of a model without a replica."""
    port = free_port()
    with own_cluster(proxy_port=port):
        model = config(deployment_config={"autoscaling_config": ZERO})
        serve.run(build_dev_openai_app({"llm_configs": [model]}), name="app")
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE_S) as one:
            yield one
        serve.delete("app")


def replicas() -> dict[str, int]:
    """The model's replicas by what they do, starting ones too."""
    found = serve.status().applications["app"].deployments["LLMServer:m"].replica_states
    return {str(state): count for state, count in found.items() if count}


def test_only_a_request_that_is_to_be_answered_wakes_it(client: httpx.Client) -> None:
    for path in GETS:
        reply = client.get(path, params={"model": "m"})
        assert reply.status_code in (200, 400, 404, 503), (path, reply.text)
    for path, body in MALFORMED:
        reply = client.post(path, json={"model": "m", **body})
        assert reply.status_code == 400, (path, body, reply.text)
    for path, body, param in BEYOND:
        reply = client.post(path, json={"model": "m", **body})
        assert reply.status_code == 400, (path, body, reply.text)
        assert reply.json()["error"]["param"].startswith(param)
    for content in BROKEN:
        headers = {"content-type": "application/json"}
        reply = client.post("/v1/chat/completions", content=content, headers=headers)
        assert reply.status_code == 400, (content, reply.text)
    for name in NO_MODELS:
        reply = client.post("/v1/chat/completions", json={**CHAT, "model": name})
        assert reply.status_code == 404, (name, reply.text)
    assert client.post("/classify", json={"model": "m", "input": "a"}).status_code == 400
    for path, body in CONTROLS:
        client.post(path, json={"model": "m", **body})
    client.post("/wakeup", json={"model": "m"})
    client.post("/resume", json={"model": "m"})
    assert replicas() == {}

    reply = client.post("/v1/chat/completions", json=CHAT)
    assert reply.status_code == 200, reply.text
    assert sum(replicas().values()) == 1
    (key,) = internal_kv._internal_kv_list("", namespace=ABLE)
    noted = msgspec.json.decode(
        internal_kv._internal_kv_get(key, namespace=ABLE), type=Capabilities
    )
    assert noted == SimulatedEngine().capabilities
