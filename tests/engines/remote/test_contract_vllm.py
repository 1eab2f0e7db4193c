"""The contract through vLLM's own OpenAI server, on the CPU, with the demo model."""

import os
import signal
import socket
import subprocess
import sys

import httpx
import pytest
import pytest_asyncio

from penstock import demo
from penstock.engines.remote.engine import RemoteEngine
from penstock.errors import RequestError
from penstock.testing import (
    GREEDY,
    EngineContract,
    answer,
    chat_request,
    check_adapters_mix,
    deltas_of,
)
from penstock.types import CompletionRequest, Sampling, StructuredOutput

pytestmark = pytest.mark.vllm
pytest.importorskip("vllm")

LOAD_SECONDS = 240


@pytest.fixture(scope="module")
def server():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    model = str(demo.model_path("huggingface"))
    argv = [
        sys.executable,
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        model,
        "--served-model-name",
        "demo",
    ]
    argv += [
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--dtype",
        "float32",
        "--enforce-eager",
        "--block-size",
        "32",
    ]
    argv += [
        "--kv-cache-memory-bytes",
        str(64 << 20),
        "--max-num-seqs",
        "16",
        "--enable-request-id-headers",
    ]
    argv += ["--enable-lora", "--max-loras", "3", "--max-lora-rank", "8", "--lora-modules"]
    argv += [f"{name}={demo.adapter_path(name)}" for name in demo.ADAPTERS]
    env = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "TORCHDYNAMO_DISABLE": "1",
    }
    env["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # halves the time it takes to start
    with subprocess.Popen(argv, env=env, start_new_session=True) as process:
        try:
            url = f"http://127.0.0.1:{port}"
            for _ in range(LOAD_SECONDS * 5):
                try:
                    if httpx.get(f"{url}/health").status_code == 200:
                        break
                except httpx.TransportError:
                    assert process.poll() is None, "vLLM did not start"
                    signal.sigtimedwait([], 0.2)
            yield f"{url}/v1"
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(60)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(server):
    engine = RemoteEngine(
        "demo", engine_kwargs={"base_url": server, "concurrency": 16, "max_top_logprobs": 5}
    )
    await engine.start()
    yield engine
    await engine.stop()


@pytest.mark.asyncio(loop_scope="module")
class TestContract(EngineContract):
    async def test_token_ids_out_of_range_are_refused(self, engine):
        """In prompts; vLLM's /detokenize takes any number, and there is no vocabulary here to check
        it by.
        """
        with pytest.raises(RequestError):
            await answer(engine, CompletionRequest([1, 10**9], GREEDY))

    async def test_its_context_is_known(self, engine):
        assert engine.capabilities.context_length > 0
        assert "regex" in engine.capabilities.structured

    async def test_its_adapters_mix_with_the_base_model(self, engine):
        await check_adapters_mix(engine, self.prompt, demo.ADAPTERS)

    async def test_chunks_are_handed_on(self, engine):
        read = await answer(engine, chat_request(self.prompt))
        deltas = await deltas_of(engine, chat_request(self.prompt, forward_chunks=True))
        assert any(delta.chunks for delta in deltas)
        assert deltas[-1].usage == read.usage

    async def test_a_regex_reaches_it(self, engine):
        constraint = StructuredOutput("regex", "[ab]{3}-[0-9]{2}")
        result = await answer(
            engine, chat_request(self.prompt, Sampling(max_tokens=20, structured=constraint))
        )
        assert result.texts[0][3] == "-"
