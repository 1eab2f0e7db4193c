"""An engine that is killed again and again under a server leaves nothing behind."""

import asyncio
import gc
import os
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from penstock.engines.simulated.engine import SimulatedEngine
from penstock.errors import EngineDeadError
from penstock.llm_config import LLMConfig
from penstock.serve.models.server import LLMServer
from penstock.testing import answer, chat_request
from penstock.types import Sampling

CYCLES = 200
LONG = Sampling(temperature=0.0, max_tokens=1000, ignore_eos=True)


def held():
    """What this process holds: descriptors, tasks, and children."""
    gc.collect()
    descriptors = len(os.listdir("/proc/self/fd"))
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return descriptors, len(asyncio.all_tasks()), children


@pytest.mark.slow
async def test_two_hundred_deaths_leave_no_process_descriptor_or_task():
    config = LLMConfig.from_dict(
        {"model_loading_config": {"model_id": "m"}, "llm_engine": "simulated"}
    )
    engine = SimulatedEngine()
    server: Any = LLMServer(config, engine=engine)
    await server.start()
    expected = (await answer(server, chat_request("hello"))).texts
    before = held()
    for cycle in range(CYCLES):
        async with aclosing(server.chat(chat_request("hello", LONG))) as stream:
            await anext(stream)
            await engine.stop()  # as a kill: the server knows nothing of it
            with pytest.raises(EngineDeadError):
                _ = [delta async for delta in stream]
        assert (await answer(server, chat_request("hello"))).texts == expected
        assert server.supervisor.generation == cycle + 2
    assert held() == before
    assert server.admission.idle
    await server.stop()
