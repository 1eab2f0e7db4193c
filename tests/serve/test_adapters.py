"""Adapters: where they come from, their versions, and which of them an engine holds."""

import asyncio
import shutil
import threading
from pathlib import Path

import fsspec
import pytest

from penstock.engines.disk import sources
from penstock.engines.simulated.engine import SimulatedEngine
from penstock.errors import (
    ConfigError,
    EngineDeadError,
    EngineStartError,
    EngineTimeoutError,
    MissingExtraError,
    ModelNotFoundError,
)
from penstock.llm_config import LLMConfig, LoraConfig
from penstock.serve import adapters as adapter_store
from penstock.serve.adapters import (
    RECHECK_S,
    AdapterCache,
    AdapterStore,
)
from penstock.serve.models.server import LLMServer
from penstock.types import ChatRequest, Sampling


def put(root, name, weights="w", extra=()):
    """Write an adapter below a directory or URL."""
    fs, path = fsspec.core.url_to_fs(str(root))
    fs.makedirs(f"{path}/{name}", exist_ok=True)
    for file, content in (
        ("adapter_config.json", '{"r": 8}'),
        ("adapter_model.safetensors", weights),
        *extra,
    ):
        fs.pipe_file(f"{path}/{name}/{file}", content.encode())


@pytest.fixture(params=["local", "memory"])
def root(request, tmp_path):
    if request.param == "local":
        yield tmp_path / "adapters"
        return
    yield "memory://bucket/adapters"
    fsspec.filesystem("memory").rm("/bucket", recursive=True)


def weights(version):
    return Path(version.path, "adapter_model.safetensors").read_text()


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def store(root, tmp_path, clock=None, **fields):
    config = LoraConfig(dynamic_lora_loading_path=str(root), **fields)
    return AdapterStore(config, AdapterCache(tmp_path / "cache", 1 << 30), clock=clock or Clock())


async def test_adapters_are_listed_without_being_read(root, tmp_path):
    put(root, "german")
    put(root, "summary")
    put(root, "summary/checkpoint-1")
    put(root, ".hidden")
    found = store(root, tmp_path)
    assert await found.names() == ["german", "summary"]
    assert not (tmp_path / "cache").exists()


async def test_the_list_is_looked_up_at_most_every_few_seconds(root, tmp_path):
    clock = Clock()
    put(root, "a")
    found = store(root, tmp_path, clock)
    assert await found.names() == ["a"]
    put(root, "b")
    clock.now = RECHECK_S - 0.1
    assert await found.names() == ["a"]
    clock.now = RECHECK_S
    assert await found.names() == ["a", "b"]


async def test_a_source_that_fails_fails_no_list(root, tmp_path, monkeypatch, caplog):
    clock = Clock()
    put(root, "a")
    found = store(root, tmp_path, clock)
    assert await found.names() == ["a"]

    def broken():
        raise OSError("no route")

    monkeypatch.setattr(found, "_list", broken)
    clock.now = RECHECK_S
    assert await found.names() == ["a"]
    assert "no route" in caplog.text
    never = store(root, tmp_path)
    monkeypatch.setattr(never, "_list", broken)
    assert await never.names() == []


async def test_names_that_are_asked_for_in_vain_fill_no_memory(root, tmp_path, monkeypatch):
    put(root, "a")
    found = store(root, tmp_path, max_download_tries=1)
    with pytest.raises(ModelNotFoundError):
        await found.fetch("nobody")

    def broken(location):
        raise OSError("no route")

    monkeypatch.setattr(adapter_store, "_stamp", broken)
    with pytest.raises(EngineStartError, match="no route"):
        await found.fetch("a")
    assert found._known == {}


async def test_an_empty_place_has_no_adapters(tmp_path):
    assert await store(tmp_path / "nothing", tmp_path).names() == []
    with pytest.raises(ModelNotFoundError, match="has no adapters"):
        await store(tmp_path / "nothing", tmp_path).fetch("a")


async def test_an_adapter_is_copied_under_its_content(root, tmp_path):
    put(root, "a", extra=[("optimizer.pt", "x" * 1000)])
    version = await store(root, tmp_path).fetch("a")
    home = tmp_path / "cache" / version.digest
    assert version.path == str(home)
    assert sorted(p.name for p in home.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert [p.name for p in (tmp_path / "cache").iterdir()] == [version.digest]
    assert await store(root, tmp_path).fetch("a") == version  # also by another process


async def test_changed_content_is_another_version_and_the_old_one_stays_whole(root, tmp_path):
    clock = Clock()
    put(root, "a", "old")
    found = store(root, tmp_path, clock)
    old = await found.fetch("a")
    put(root, "a", "new!")
    assert await found.fetch("a") == old  # seen a moment ago
    clock.now = RECHECK_S
    new = await found.fetch("a")
    assert new.digest != old.digest
    assert weights(old) == "old"
    assert weights(new) == "new!"


async def test_an_adapter_that_was_deleted_is_gone(root, tmp_path):
    clock = Clock()
    put(root, "a")
    found = store(root, tmp_path, clock)
    await found.fetch("a")
    fs, path = fsspec.core.url_to_fs(str(root))
    fs.rm(f"{path}/a", recursive=True)
    clock.now = RECHECK_S
    with pytest.raises(ModelNotFoundError):
        await found.fetch("a")


@pytest.mark.parametrize(
    "name",
    [
        "../secret",
        "..",
        ".",
        "",
        "/etc",
        "a/b",
        "a\\b",
        "a\0",
        "a@b",
        "x" * 200,
        "memory://other/a",
        "%2e%2e",
        "ä",
    ],
)
async def test_names_are_no_paths(root, tmp_path, name):
    put(root, "known")
    put(str(root).replace("adapters", "secret"), ".")
    with pytest.raises(ModelNotFoundError):
        await store(root, tmp_path).fetch(name)


async def test_an_unknown_name_is_told_the_nearest(root, tmp_path):
    put(root, "german")
    with pytest.raises(ModelNotFoundError, match="'german'"):
        await store(root, tmp_path).fetch("germann")


async def test_named_adapters_need_no_common_place(tmp_path):
    put(tmp_path, "one")
    config = LoraConfig(adapters={"first": str(tmp_path / "one")})
    found = AdapterStore(config, AdapterCache(tmp_path / "cache", 1 << 30))
    assert await found.names() == ["first"]
    assert (await found.fetch("first")).name == "first"


def test_a_missing_backend_names_its_extra_before_anything_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "find_spec", lambda module: None)
    with pytest.raises(MissingExtraError, match=r"penstock\[s3\]"):
        store("s3://bucket/adapters", tmp_path)
    with pytest.raises(ConfigError, match="unknown kind of URL 'hff://'"):
        store("hff://bucket/adapters", tmp_path)


async def test_downloads_are_tried_again(root, tmp_path, monkeypatch):
    put(root, "a")
    monkeypatch.setattr(adapter_store, "RETRY_DELAY_S", 0.0)
    download, failures = AdapterCache.take_in, [OSError("reset"), OSError("reset")]

    def shaky(*args):
        if failures:
            raise failures.pop()
        return download(*args)

    monkeypatch.setattr(AdapterCache, "take_in", shaky)
    assert (await store(root, tmp_path).fetch("a")).name == "a"
    failures[:] = [OSError("reset")] * 3
    with pytest.raises(EngineStartError, match="reset"):
        await store(root, tmp_path).fetch("a")


async def test_a_timeout_of_the_source_itself_is_a_failure_to_read(root, tmp_path, monkeypatch):
    put(root, "a")

    def late(location):
        raise TimeoutError("timed out")

    monkeypatch.setattr(adapter_store, "_stamp", late)
    with pytest.raises(EngineStartError, match="cannot be read: TimeoutError: timed out"):
        await store(root, tmp_path, max_download_tries=1, download_timeout_s=None).fetch("a")


async def test_what_is_here_serves_on_while_the_source_fails(root, tmp_path, monkeypatch):
    clock = Clock()
    put(root, "a")
    found = store(root, tmp_path, clock, max_download_tries=1)
    version = await found.fetch("a")

    def broken(location):
        raise OSError("no route")

    monkeypatch.setattr(adapter_store, "_stamp", broken)
    clock.now = RECHECK_S
    assert await found.fetch("a") == version


async def test_an_adapter_that_left_the_cache_is_copied_again(root, tmp_path):
    clock = Clock()
    put(root, "a")
    found = store(root, tmp_path, clock)
    version = await found.fetch("a")
    shutil.rmtree(version.path)
    clock.now = RECHECK_S
    assert await found.fetch("a") == version
    assert weights(version) == "w"


async def test_a_download_takes_no_longer_than_allowed(root, tmp_path, monkeypatch):
    put(root, "a")
    over = threading.Event()
    monkeypatch.setattr(adapter_store, "_stamp", lambda location: over.wait())
    try:
        with pytest.raises(EngineTimeoutError, match="did not come within"):
            await store(root, tmp_path, download_timeout_s=0.0, max_download_tries=1).fetch("a")
    finally:
        over.set()


# Restarts, and all together
class Forgetful(SimulatedEngine):
    async def stop(self):
        await super().stop()
        self.adapters.clear()


async def test_a_restarted_engine_gets_its_adapters_back(tmp_path, monkeypatch):
    monkeypatch.setenv("PENSTOCK_CACHE_DIR", str(tmp_path / "cache"))
    put(tmp_path, "a")
    config = LLMConfig.from_dict(
        {
            "model_loading_config": {"model_id": "m"},
            "lora_config": {"adapters": {"a": str(tmp_path / "a")}},
        }
    )
    server = LLMServer(config, engine=Forgetful(engine_kwargs={"time_per_token_ms": 0.01}))
    await server.start()
    request = ChatRequest([{"role": "user", "content": "Hi"}], adapter="a")
    assert [delta async for delta in server.chat(request)]
    server.engine._die("killed")  # type: ignore[attr-defined]
    assert [delta async for delta in server.chat(request)]
    assert server.supervisor.generation == 2
    assert len(server.engine.adapters) == 1
    await server.stop()


class Checking(SimulatedEngine):
    async def resolve_lora(self, name, path):
        await self.check_health()
        await super().resolve_lora(name, path)


async def test_a_dead_engine_is_revived_for_an_adapter_that_it_never_had(tmp_path, monkeypatch):
    monkeypatch.setenv("PENSTOCK_CACHE_DIR", str(tmp_path / "cache"))
    for name in ("a", "b"):
        put(tmp_path, name)
    config = LLMConfig.from_dict(
        {
            "model_loading_config": {"model_id": "m"},
            "lora_config": {"adapters": {"a": str(tmp_path / "a")}},
        }
    )
    server = LLMServer(config, engine=Checking())
    await server.start()
    server.engine._die("killed")  # type: ignore[attr-defined]
    request = ChatRequest([{"role": "user", "content": "Hi"}], adapter="a")
    assert [delta async for delta in server.chat(request)]
    server.engine._die("killed", suspects=False)  # type: ignore[attr-defined]
    with pytest.raises(EngineDeadError):
        await server.load_lora_adapter("b", str(tmp_path / "b"))
    await server.supervisor.ready()
    await server.load_lora_adapter("b", str(tmp_path / "b"))
    assert server.state().restarts == 2
    assert server.state().adapter_names == ("a", "b")
    await server.stop()


async def test_an_engine_starts_without_an_adapter_that_left_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PENSTOCK_CACHE_DIR", str(tmp_path / "cache"))
    put(tmp_path, "a")
    config = LLMConfig.from_dict(
        {
            "model_loading_config": {"model_id": "m"},
            "lora_config": {"adapters": {"a": str(tmp_path / "a")}},
        }
    )
    engine = SimulatedEngine()
    server = LLMServer(config, engine=engine)
    await server.start()
    request = ChatRequest([{"role": "user", "content": "Hi"}], adapter="a")
    assert [delta async for delta in server.chat(request)]
    shutil.rmtree(tmp_path / "cache")
    engine._die("killed")
    assert [delta async for delta in server.chat(ChatRequest(request.messages))]
    assert engine.adapters == {}
    assert (server.state().restarts, server.state().adapter_loads) == (1, 1)
    await server.stop()


async def test_requests_with_adapters_end_to_end(root, tmp_path, monkeypatch):
    monkeypatch.setenv("PENSTOCK_CACHE_DIR", str(tmp_path / "cache"))
    for name in ("a", "b"):
        put(root, name, weights=name)
    config = LLMConfig.from_dict(
        {
            "model_loading_config": {"model_id": "m"},
            "llm_engine": "simulated",
            "lora_config": {
                "dynamic_lora_loading_path": str(root),
                "max_num_adapters_per_replica": 1,
            },
        }
    )
    server = LLMServer(config)
    await server.start()

    async def answer(adapter):
        request = ChatRequest(
            [{"role": "user", "content": "Hi"}], Sampling(temperature=0.0), adapter=adapter
        )
        return "".join([delta.text async for delta in server.chat(request)])

    answers = await asyncio.gather(*(answer(name) for name in ("a", "b", None) * 4))
    assert answers == answers[:3] * 4
    assert len(set(answers)) == 3
    assert len(server.engine.adapters) == 1
    await server.stop()
