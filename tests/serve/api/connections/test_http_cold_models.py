"""Ten models that load on demand, one of them broken, behind one ingress, on the real engine."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest

from penstock import demo
from penstock.llm_config import LLMConfig
from penstock.serve.api.ingress import OpenAiIngress
from penstock.serve.models.local import build_local_handles

NAMES = [f"model-{number}" for number in range(10)]
BROKEN = NAMES[6]
OPTIONS = {
    "inference_precision": "f32",
    "num_threads": 1,
    "kv_cache_memory_bytes": 32 << 20,
    "max_num_seqs": 8,
}


@pytest.mark.slow
async def test_nine_answer_and_the_tenth_says_why_not(tmp_path: Any) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "openvino_model.xml").write_text("<net")
    handles = build_local_handles(
        LLMConfig.from_dict(
            {
                "model_loading_config": {
                    "model_id": name,
                    "model_source": str(tmp_path / "broken") if name == BROKEN else "demo",
                },
                "engine_kwargs": OPTIONS,
                "deployment_config": {"autoscaling_config": {"min_replicas": 0}},
            }
        )
        for name in NAMES
    )
    app: Any = OpenAiIngress(handles)
    ticket = json.loads(demo.tickets_path().read_text(encoding="utf-8").splitlines()[0])
    ask = {
        "messages": [{"role": "user", "content": ticket["ticket"]}],
        "temperature": 0,
        "max_tokens": 100,
    }
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(
        transport=transport, base_url="http://test", timeout=120
    ) as client:

        async def states() -> dict[str, str]:
            cards = (await client.get("/v1/models")).json()["data"]
            return {card["id"]: card["state"] for card in cards if card["parent"] is None}

        await asyncio.gather(*(handle.start() for handle in handles.values()))
        assert await states() == dict.fromkeys(NAMES, "cold")
        assert (await client.get("/health")).status_code == 200
        for name in NAMES:
            answer = await client.post("/v1/chat/completions", json={**ask, "model": name})
            if name == BROKEN:
                assert answer.status_code == 503
                assert str(tmp_path / "broken") in answer.json()["error"]["message"]
            else:
                assert answer.json()["choices"][0]["message"]["content"] == demo.expected(ticket)
        assert await states() == {name: "failed" if name == BROKEN else "ready" for name in NAMES}
        reason = (await client.get(f"/v1/models/{BROKEN}")).json()["reason"]
        assert str(tmp_path / "broken") in reason
        assert (await client.get("/health")).status_code == 200
    await asyncio.gather(*(handle.stop(0) for handle in handles.values()))
