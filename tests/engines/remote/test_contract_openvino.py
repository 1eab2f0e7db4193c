"""The contract through `penstock serve` of the embedded engine with the demo model, its adapters included."""

import signal
import subprocess
import sys

import pytest
import pytest_asyncio

from penstock import demo
from penstock.engines.remote import RemoteEngine
from penstock.errors import UpstreamError
from penstock.testing import EngineContract, answer, chat_request, deltas_of

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server():
    argv = [sys.executable, "-m", "penstock.cli", "serve", "demo", "--port", "0"]
    argv += ["--engine-kwargs", '{"inference_precision": "f32", "max_num_seqs": 16}']
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            yield process, line.split()[2] + "/v1"
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)
