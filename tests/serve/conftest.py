import asyncio

import pytest

import serve_process
from penstock.serve.models import server as server_module
from penstock.serve.models.server import LLMServer
from replica_cluster import cluster  # noqa: F401
from scripted_server import Scripted, config


@pytest.fixture(autouse=True)
def no_delays(monkeypatch):
    monkeypatch.setattr(server_module, "RESTART_DELAYS_S", (0.0, 0.0))
    monkeypatch.setattr(server_module, "RETRY_DELAYS_S", (0.0,))


@pytest.fixture
async def started():
    """Makes started servers, and sees to it that they leave nothing behind."""
    servers = []

    async def start(engine=None, **fields):
        server = LLMServer(config(**fields), engine=engine or Scripted())
        servers.append(server)
        await server.start()
        return server

    yield start
    for server in servers:
        await server.stop()
    for _ in range(5):
        await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.fixture(scope="session")
def serving():
    """`penstock serve` with these arguments, as a context."""
    return serve_process.serving
