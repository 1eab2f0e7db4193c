"""Real vLLM that shares its steps: batch requests step aside for others, and answers stay."""

import asyncio
from typing import Any

import pytest
import pytest_asyncio

from penstock.engines.vllm.engine import VLLMEngine
from penstock.llm_config.batch import BatchConfig
from penstock.types import CompletionRequest, Sampling

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.filterwarnings("ignore"),  # vLLM's own are not ours to mend
    pytest.mark.asyncio(loop_scope="module"),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine() -> Any:
    scheduler = "penstock.engines.vllm.scheduler.SharingAsyncScheduler"
    engine = VLLMEngine("demo", engine_kwargs={"max_num_seqs": 8, "scheduler_cls": scheduler})
    engine.sharing = BatchConfig(ttft_ratio=1.25)
    await engine.start()
    yield engine
    await engine.stop()


async def text(engine: Any, number: int, *, batch: bool) -> str:
    sampling = Sampling(temperature=0.0, max_tokens=48, ignore_eos=True)
    prompt = f"Repeat the text. The pump {number} leaks since May."
    found = ""
    async for delta in engine.completions(CompletionRequest(prompt, sampling, batch=batch)):
        found += delta.text
    return found


async def test_batch_rows_step_aside_and_are_answered_all_the_same(engine: Any) -> None:
    assert engine.shares_steps
    alone = [await text(engine, number, batch=False) for number in range(12)]
    rows = [asyncio.ensure_future(text(engine, number, batch=True)) for number in range(12)]
    online = []
    for _ in range(6):
        await asyncio.sleep(0.02)
        online.append(await text(engine, 3, batch=False))
    assert set(online) == {alone[3]}
    assert await asyncio.gather(*rows) == alone
    metrics = await engine.metrics()
    assert metrics["batch_evictions"] > 0
    assert metrics["online_first_token_p95_seconds"] > 0


async def test_batch_requests_end_when_they_are_given_up(engine: Any) -> None:
    rows = [asyncio.ensure_future(text(engine, number, batch=True)) for number in range(20)]
    await asyncio.sleep(0.05)
    for row in rows:
        row.cancel()
    await asyncio.gather(*rows, return_exceptions=True)
    assert await text(engine, 1, batch=False)
