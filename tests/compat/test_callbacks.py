"""Callbacks in Ray's form."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

from penstock.errors import ConfigError, EngineStartError
from penstock.serve.callbacks import CallbackBase, CallbackConfig, CallbackCtx, CloudDownloader
from penstock.serve.models.data_parallel import EngineGroup
from penstock.serve.models.server import LLMServer
from scripted_server import Scripted, config


class Noting(CallbackBase):
    """Notes its hooks; `skip` leaves the download out, `fail` names the hook that fails."""

    noted: ClassVar[list[Any]] = []

    async def on_before_node_init(self):
        self.note("before")
        self.ctx.custom_data["seen"] = 1
        if self.kwargs.get("skip"):
            self.ctx.run_init_node = False

    def on_before_download_model_files_distributed(self):
        self.note("download")

    async def on_after_node_init(self):
        self.note("after", self.ctx.custom_data)

    def note(self, *what):
        self.noted.append(what)
        if self.kwargs.get("fail") == what[0]:
            raise OSError("no space")


@pytest.fixture
def started():
    Noting.noted = []

    async def start(**fields: Any) -> LLMServer:
        given = CallbackConfig(callback_class=Noting, **fields)
        engine = Scripted()
        engine.go_on.set()
        server = LLMServer(
            config(callback_config=given, runtime_env={"env_vars": {"A": "1"}}), engine=engine
        )
        await server.start()
        return server

    return start


async def test_the_hooks_share_a_context(started):
    server = await started()
    assert Noting.noted == [("before",), ("download",), ("after", {"seen": 1})]
    callback = server._callbacks._object
    assert isinstance(callback.ctx, CallbackCtx)
    assert callback.ctx.runtime_env == {"env_vars": {"A": "1"}}
    assert callback.llm_config.model_id == "m"
    await server.stop()


async def test_a_hook_switches_the_download_off(started):
    server = await started(callback_kwargs={"skip": True})
    assert [one[0] for one in Noting.noted] == ["before", "after"]
    await server.stop()


async def test_errors_count_unless_they_are_said_not_to(started, caplog):
    with pytest.raises(EngineStartError, match="no space"):
        await started(callback_kwargs={"fail": "download"})
    server = await started(callback_kwargs={"fail": "download"}, raise_error_on_callback=False)
    assert Noting.noted[-1][0] == "after"
    assert "no space" in caplog.text
    await server.stop()


class Fetching(CallbackBase):
    """Brings the model itself, and may change options."""

    async def on_before_node_init(self):
        self.ctx.run_init_node = False
        engine = self.llm_config.get_engine_config()
        engine.hf_model_id = self.kwargs["path"]
        self.llm_config.update_engine_kwargs(**self.kwargs.get("options", {}))
        assert self.llm_config.get_engine_config().actual_hf_model_id == self.kwargs["path"]


@pytest.mark.parametrize("ranks", [0, 2])
async def test_a_hook_says_where_the_model_lies(ranks):
    engines = [Scripted() for _ in range(ranks or 1)]
    for one in engines:
        one.go_on.set()
    engine = EngineGroup(engines) if ranks else engines[0]
    given = {"callback_class": Fetching, "callback_kwargs": {"path": "/here"}}
    server = LLMServer(config(callback_config=given), engine=engine)
    await server.start()
    assert [one.model_source for one in engines] == ["/here"] * len(engines)
    await server.stop()


async def test_a_hook_that_changes_options_of_a_made_engine_is_told():
    given = {"path": "/here", "options": {"max_model_len": 9}}
    engine = Scripted()
    engine.go_on.set()
    server = LLMServer(
        config(callback_config={"callback_class": Fetching, "callback_kwargs": given}),
        engine=engine,
    )
    with pytest.raises(EngineStartError, match="Set them in the configuration"):
        await server.start()
    await server.stop()


async def test_a_configuration_that_is_used_again_changes_no_engine():
    engine, given = Scripted(), config()
    engine.go_on.set()
    server = LLMServer(given, engine=engine)
    source = engine.model_source
    given.model_loading_config.model_source = "/another"
    given.update_engine_kwargs(max_model_len=9)
    await server.start()
    assert engine.model_source == source
    await server.stop()


async def test_hooks_are_called_by_name(caplog):
    one = Noting(llm_config=None, raise_error_on_callback=False, fail="before")
    await one.run_callback("on_before_node_init")
    assert "no space" in caplog.text
    await one.run_callback("nothing")
    assert "nothing" in caplog.text
    other = Noting(llm_config=None, fail="before")
    with pytest.raises(OSError, match="no space"):
        await other.run_callback("on_before_node_init")


def test_hooks_are_called_without_a_loop():
    Noting.noted = []
    Noting(llm_config=None).run_callback_sync("on_before_download_model_files_distributed")
    assert Noting.noted == [("download",)]


def test_files_are_copied(tmp_path):
    import fsspec

    with fsspec.open("memory://bucket/a.txt", "w") as file:
        file.write("hello")
    copy = tmp_path / "deep" / "a.txt"
    one = CloudDownloader(llm_config=None, paths=[("memory://bucket/a.txt", str(copy))])
    one.on_before_download_model_files_distributed()
    assert copy.read_text() == "hello"


@pytest.mark.parametrize("scheme", ["azure", "abfss", "s3", "gs", "pyarrow-s3"])
def test_rays_kinds_of_url_are_known(scheme):
    CloudDownloader(llm_config=None, paths=[(f"{scheme}://bucket/a.txt", "a.txt")])


@pytest.mark.parametrize(
    ("given", "told"),
    [({}, "paths"), ({"paths": [("nope://a", "b")]}, "URL"), ({"paths": ["a"]}, "pairs")],
)
def test_paths_that_cannot_be_copied_are_refused(given, told):
    with pytest.raises(ConfigError, match=told):
        CloudDownloader(llm_config=None, **given)
