"""Two replicas on real engines: their cores, and the death of one of them."""

import asyncio
import os
import signal
from typing import Any

import pytest

from penstock.cores import parted, usable_cores
from penstock.llm_config import LLMConfig
from penstock.serve.models.local import build_local_handles
from penstock.testing import answer, chat_request
from penstock.types import Sampling
from random_model import TINY, write_random_model

pytestmark = pytest.mark.slow
LONG = Sampling(temperature=0.0, max_tokens=200, ignore_eos=True)


@pytest.fixture
async def model(tmp_path):
    path = tmp_path / "tiny.gguf"
    write_random_model(path, TINY)
    config = LLMConfig.from_dict(
        {
            "model_loading_config": {"model_id": "tiny", "model_source": str(path)},
            "engine_kwargs": {"max_num_seqs": 8, "kv_cache_memory_bytes": 64 << 20},
            "deployment_config": {
                "num_replicas": 2,
                "request_router_config": {"request_router_class": "least_loaded"},
            },
        }
    )
    handle: Any = build_local_handles([config])["tiny"]
    await handle.start()
    yield handle
    await handle.stop(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}


def pid_of(replica):
    return replica.model.server.engine._process.pid


async def test_each_process_has_its_part_of_the_cores(model):
    parts = parted(usable_cores(), 2)
    for replica, part in zip(model.crew.replicas, parts, strict=True):
        assert os.sched_getaffinity(pid_of(replica)) == set(part)


async def test_a_killed_replica_loses_no_request_and_comes_back(model):
    asked = [
        asyncio.create_task(answer(model, chat_request(f"{n}", LONG, stream=False)))
        for n in range(40)
    ]
    await asyncio.sleep(0.2)
    dead, other = model.crew.replicas
    os.kill(pid_of(dead), signal.SIGKILL)
    answers = await asyncio.gather(*asked)
    assert all(one.texts[0] for one in answers)
    await answer(model, chat_request("again", LONG))
    async with asyncio.timeout(60):
        while [dead.phase, other.phase] != ["ready", "ready"]:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    assert model.state().restarts == 1
