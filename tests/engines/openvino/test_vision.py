"""The contract on a vision-language model with random weights, and what is special about images."""

import os
import signal

import pytest
import pytest_asyncio

from penstock.engines.openvino import OpenVINOEngine
from penstock.testing import EngineContract
from vision_models import vision_model

OPTIONS = {
    "max_num_seqs": 16,
    "deterministic": True,
    "num_threads": 1,
    "kv_cache_memory_bytes": 64 << 20,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return vision_model(tmp_path_factory.mktemp("model"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(model):
    engine = OpenVINOEngine(str(model), engine_kwargs=OPTIONS)
    await engine.start()
    yield engine
    await engine.stop()


class TestContract(EngineContract):
    async def kill(self, engine):
        os.kill(engine._process.pid, signal.SIGKILL)
        return True
