"""Replicas of a model as servers of their own on loopback, and what stands for their runtime."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import httpx
import pytest

from penstock.balance.policies.load import RoundRobin
from penstock.llm_config import LLMConfig
from penstock.serve.api.ingress import OpenAiIngress
from penstock.serve.config.settings import HttpSettings
from penstock.serve.replicas.model import RemoteModel
from penstock.serve.replicas.replica import ReplicaServer
from penstock.serve.replicas.runtime import InMemoryStore, ReplicaInfo

KEY = "secret"


def config(**fields: Any) -> LLMConfig:
    loading = {"model_id": "m", "model_source": "simulated"}
    return LLMConfig.from_dict(
        {"model_loading_config": loading, "llm_engine": "simulated", **fields}
    )


class Cluster:
    """A runtime of this process: it starts a replica when one is asked for, if it may."""

    def __init__(self, model: LLMConfig, **settings: Any) -> None:
        self.config = model
        self.settings = HttpSettings(dev=True, **settings)
        self.desired = InMemoryStore()
        self.servers: dict[str, ReplicaServer] = {}
        self.listed: tuple[ReplicaInfo, ...] = ()
        self.obtained = 0
        self.model = RemoteModel(model, self, key=KEY, policy=RoundRobin(), desired=self.desired)
        self.app = OpenAiIngress({"m": self.model}, settings=self.settings)
        self.client = httpx.AsyncClient(
            transport=httpx.ASGITransport(app=self.app), base_url="http://test"
        )

    def current(self) -> tuple[ReplicaInfo, ...]:
        return self.listed

    async def obtain(self) -> ReplicaInfo:
        self.obtained += 1
        server = await self.add()
        return server.info

    async def add(self) -> ReplicaServer:
        server = ReplicaServer(
            self.config,
            replica_id=f"r{len(self.servers)}",
            host="127.0.0.1",
            key=KEY,
            settings=self.settings,
            desired=self.desired,
        )
        self.servers[server.id] = server
        await server.start()
        await until(lambda: server._http._uvicorn.started)
        self.listed = (*self.listed, server.info)
        return server

    async def kill(self, replica: str) -> None:
        """Its connections end, and its port refuses; the list still has it."""
        server = self.servers.pop(replica)
        for listening in server._http._uvicorn.servers:
            listening.close()
        for connection in list(server._http._uvicorn.server_state.connections):
            connection.transport.abort()
        await server.stop()

    async def close(self) -> None:
        await self.client.aclose()
        await self.app.ingress.drain(0)
        await self.model.stop()
        for server in self.servers.values():
            await server.stop()


@pytest.fixture
async def cluster() -> AsyncGenerator[Callable[..., Awaitable[Cluster]], None]:
    made: list[Cluster] = []

    async def make(replicas: int = 1, model: LLMConfig | None = None, **settings: Any) -> Cluster:
        one = Cluster(model or config(), **settings)
        made.append(one)
        for _ in range(replicas):
            await one.add()
        return one

    yield make
    for one in made:
        await one.close()


Make = Callable[..., Awaitable[Cluster]]


async def until(so: Callable[[], bool]) -> None:
    while not so():  # noqa: ASYNC110 - nobody announces it
        await asyncio.sleep(0)
