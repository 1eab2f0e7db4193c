"""What `test_prefill_decode_vllm` leaves out, between two real vLLM engines: files in a folder,
several connectors at once, and engines of several ranks.
"""

import asyncio
from typing import Any

import pytest

from penstock.demo import model_path
from penstock.kv import nixl
from penstock.llm_config import LLMConfig
from penstock.serve.models.local import LocalModel
from penstock.serve.prefill_decode import paired
from penstock.types import ChatRequest, Sampling

# VLLM's own are not ours to mend.
pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]

needs_nixl = pytest.mark.skipif(
    nixl.package_name() is None, reason="needs NIXL: VLLM_EXTRAS=nixl scripts/install_vllm.sh"
)
GREEDY = Sampling(temperature=0.0, max_tokens=24)
TICKET = "My Solara 77 arrived broken and nobody answers. I want my money back! "


def side(connector, **engine_kwargs):
    return LLMConfig.from_dict(
        {
            # As a folder, and so without its adapters, whose caches files would mix up.
            "model_loading_config": {
                "model_id": "m",
                "model_source": str(model_path("huggingface")),
            },
            "llm_engine": "vllm",
            "engine_kwargs": {
                "kv_transfer_config": connector,
                "max_num_seqs": 8,
                "max_model_len": 2048,
                "kv_cache_memory_bytes": 64 << 20,
                **engine_kwargs,
            },
        }
    )


async def answer(handle, request):
    return "".join([delta.text async for delta in handle.chat(request)])


async def check(connector, **engine_kwargs):
    """Answers are those of the decode engine alone; gives what that engine counts."""
    pair = LocalModel(paired(*[side(connector, **engine_kwargs)] * 2))
    server: Any = pair.server
    await pair.start()
    try:
        # Long enough that each fills blocks of its own.
        asked = [
            ChatRequest([{"role": "user", "content": f"{n}. {TICKET * (6 + n)}"}], GREEDY)
            for n in range(6)
        ]
        texts = await asyncio.gather(*(answer(pair, request) for request in asked))
        assert server.handoffs == {"remote": 6}
        for engine in (server.engine, server.prefill.server.engine):
            # All ranks had work.
            assert len(engine._counts._latest) == engine_kwargs.get("data_parallel_size", 1)
        counts = await server.engine.metrics()
        await pair.control("reset_prefix_cache", {})
        assert texts == await asyncio.gather(*(answer(server.engine, request) for request in asked))
        return counts
    finally:
        await pair.stop(0.0)


@pytest.fixture(autouse=True)
def _shared_cores(monkeypatch):
    # Engines that share cores: threads that spin while they wait would take them from each other.
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")


def files(folder):
    return {
        "kv_connector": "ExampleConnector",
        "kv_connector_extra_config": {"shared_storage_path": str(folder)},
    }


async def test_files_in_a_folder(tmp_path):
    await check(files(tmp_path))
    assert len(list(tmp_path.iterdir())) >= 6  # a folder a prompt


@needs_nixl
async def test_several_connectors(tmp_path):
    parts = [{"kv_connector": "NixlConnector"}, files(tmp_path)]
    counts = await check(
        {"kv_connector": "MultiConnector", "kv_connector_extra_config": {"connectors": parts}}
    )
    assert counts["kv_transfers"] > 0
    assert counts["kv_transfer_failures"] == 0
    assert len(list(tmp_path.iterdir())) >= 6


@needs_nixl
async def test_any_rank_of_one_engine_goes_on_from_any_of_the_other():
    counts = await check({"kv_connector": "NixlConnector"}, data_parallel_size=2)
    assert counts["kv_transfers"] == 6
    assert counts["kv_transfer_failures"] == 0
