"""What an engine must be started for: profiles, a KV connector; and a server that puts vLLM to
sleep.
"""

from pathlib import Path
from typing import Any

import pytest

from penstock.engines.vllm.engine import VLLMEngine
from penstock.engines.vllm.processes import marked
from penstock.errors import EngineStartError, UnavailableError
from penstock.llm_config import LLMConfig
from penstock.serve.models.local import build_local_handles
from penstock.testing import answer, chat_request, deltas_of
from penstock.types import CompletionRequest, Sampling

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]

TEXT = "My Solara 77 arrived broken and nobody answers. I want my money back!"
GREEDY = Sampling(temperature=0.0, max_tokens=6)


async def test_profiles_and_what_a_connector_is_told_and_tells(tmp_path):
    options = {
        "profiler_config": {"profiler": "torch", "torch_profiler_dir": str(tmp_path)},
        "kv_transfer_config": {
            "kv_connector": "EchoConnector",
            "kv_connector_module_path": "kv_echo",
            "kv_role": "kv_both",
        },
    }
    engine = VLLMEngine("demo", engine_kwargs=options)
    await engine.start()
    try:
        told = {"do_remote_decode": True, "remote_host": "127.0.0.1"}
        for stream in (True, False):
            request = chat_request(TEXT, GREEDY, stream=stream, kv_transfer_params=told)
            deltas = await deltas_of(engine, request)
            assert deltas[-1].kv_transfer_params == {"told": told}
            assert all(delta.kv_transfer_params is None for delta in deltas[:-1])
        plain = await deltas_of(
            engine, CompletionRequest(TEXT, GREEDY, kv_transfer_params={"a": 1})
        )
        assert plain[-1].kv_transfer_params == {"told": {"a": 1}}
        assert (await deltas_of(engine, chat_request(TEXT, GREEDY)))[-1].kv_transfer_params == {
            "told": None
        }
        assert not traces(tmp_path)
        await engine.start_profile()
        await answer(engine, chat_request(TEXT, GREEDY))
        await engine.stop_profile()
        assert traces(tmp_path)
    finally:
        await engine.stop()


def traces(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size]


async def test_a_sleeping_server_holds_no_engine():
    loading = {"model_id": "demo", "model_source": "demo"}
    config = LLMConfig.from_dict({"model_loading_config": loading, "llm_engine": "vLLM"})
    handle: Any = build_local_handles([config])["demo"]
    await handle.start()
    try:
        text = (await answer(handle, chat_request(TEXT, GREEDY))).texts
        mark = handle.server.engine._running.front._guard._mark
        assert marked(mark)
        (slept,) = await handle.control("sleep", {})
        assert slept["ok"], slept
        assert not marked(mark)
        with pytest.raises(UnavailableError):
            await answer(handle, chat_request(TEXT, GREEDY))
        (woken,) = await handle.control("wakeup", {})
        assert woken["ok"], woken
        assert (await answer(handle, chat_request(TEXT, GREEDY))).texts == text
    finally:
        await handle.stop(0)


async def test_sleep_mode_where_the_platform_has_none_is_a_start_that_fails():
    engine = VLLMEngine("demo", engine_kwargs={"enable_sleep_mode": True})
    if not engine.options.cpu:
        pytest.skip("a GPU has it")
    with pytest.raises(EngineStartError, match=r"(?i)sleep mode") as caught:
        await engine.start()
    assert "\n" not in str(caught.value)
