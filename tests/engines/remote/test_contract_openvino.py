"""The contract through `penstock serve` of the embedded engine with the demo model, its adapters
included.
"""

import asyncio
import os
import signal
import socket
import subprocess
import sys

import pytest
import pytest_asyncio

from penstock.engines.remote.engine import RemoteEngine
from penstock.errors import UpstreamError
from penstock.openai.responses import Answers
from penstock.testing import EngineContract, answer, chat_request, check_adapters_mix
from penstock.types import Sampling

pytestmark = pytest.mark.slow

SERVE = "from penstock.cli.serve import serve; serve()"


class Server:
    """`penstock serve demo` in a process of its own, always on the same port."""

    def __init__(self):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.base_url = f"http://127.0.0.1:{self.port}/v1"

    def start(self):
        argv = [
            sys.executable,
            "-c",
            SERVE,
            "demo",
            "--port",
            str(self.port),
            "--log-level",
            "warning",
        ]
        argv += ["--deterministic", "--engine-kwargs", '{"max_num_seqs": 16}']
        env = {**os.environ, "PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=env)
        assert self.process.stdout is not None
        assert self.process.stdout.readline().startswith("Listening on")

    def stop(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        self.process.wait(60)
        if self.process.stdout is not None:
            self.process.stdout.close()


@pytest.fixture(scope="module")
def server():
    made = Server()
    made.start()
    yield made
    made.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(server):
    options = {"base_url": server.base_url, "concurrency": 16, "cooldown_s": 0.2, "patience_s": 60}
    engine = RemoteEngine("demo", engine_kwargs=options)
    await engine.start()
    await answer(engine, chat_request("hello"))  # waits until it is loaded
    if engine._learning is not None:
        await engine._learning
    yield engine
    await engine.stop()


@pytest.mark.asyncio(loop_scope="module")
class TestContract(EngineContract):
    async def test_everything_is_known_of_it(self, engine):
        capabilities = engine.capabilities
        assert {"chat", "completions", "tokenize", "detokenize"} <= capabilities.tasks
        assert "regex" in capabilities.structured
        assert capabilities.context_length > 0
        assert sorted(engine.adapters) == ["german", "summary"]

    async def test_its_adapters_mix_with_the_base_model(self, engine):
        await check_adapters_mix(engine, self.prompt, engine.adapters)

    async def test_a_killed_server_is_an_error_at_once_and_found_again_when_it_is_back(
        self, engine, server
    ):
        before = await answer(engine, chat_request(self.prompt))
        endless = Sampling(
            temperature=0.0, max_tokens=engine.capabilities.context_length // 2, ignore_eos=True
        )
        stream = engine.chat(chat_request(self.prompt, endless))
        await anext(stream)
        server.stop(signal.SIGKILL)
        with pytest.raises(UpstreamError):
            async for _ in stream:
                pass
        waiting = [asyncio.create_task(answer(engine, chat_request(self.prompt))) for _ in range(8)]
        while engine._upstreams.members[0].breaker.closed:  # noqa: ASYNC110 - nobody announces it
            await asyncio.sleep(0.01)
        await asyncio.to_thread(server.start)
        results = await asyncio.gather(*waiting, return_exceptions=True)
        for result in results:
            assert isinstance(result, (UpstreamError, Answers))
            assert isinstance(result, UpstreamError) or result.texts == before.texts
        assert (await answer(engine, chat_request(self.prompt))).texts == before.texts
