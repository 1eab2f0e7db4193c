"""Hooks around an engine's start."""

import threading
from typing import Any, ClassVar

import pytest

from penstock.errors import ConfigError, EngineStartError
from penstock.serve.models.server import LLMServer
from scripted_server import ASK, Scripted, config, texts


class Hooks:
    """Writes down what is called, and with an engine in which state."""

    said: ClassVar[list[Any]] = []
    engine: ClassVar[Any] = None

    def __init__(self, llm_config, raise_error_on_callback, fail="", note=""):
        self.said.append((llm_config.model_id, raise_error_on_callback, note))
        self.fail = fail

    def call(self, hook):
        self.said.append((hook, self.engine._alive))
        if hook == self.fail:
            raise OSError("no space")

    async def on_before_node_init(self):
        self.call("before")

    def on_before_download_model_files_distributed(self):
        assert threading.current_thread() is not threading.main_thread()  # it may block
        self.call("download")

    async def on_after_node_init(self):
        self.call("after")


@pytest.fixture
def server():
    Hooks.said = []

    def make(**fields):
        Hooks.engine = Scripted()
        Hooks.engine.go_on.set()
        return LLMServer(
            config(callback_config={"callback_class": Hooks, **fields}), engine=Hooks.engine
        )

    return make


async def test_hooks_run_around_every_start_in_their_order(server):
    one = server(callback_kwargs={"note": "hi"})
    await one.start()
    around = [("before", False), ("download", False), ("after", False)]
    assert Hooks.said == [("m", True, "hi"), *around]
    one.engine.silent_deaths = 1
    assert await texts(one.chat(ASK)) == "ab"
    assert Hooks.said[4:] == around
    await one.stop()


@pytest.mark.parametrize("hook", ["before", "download", "after"])
async def test_a_hook_that_fails_fails_the_start_with_its_reason(server, hook):
    one = server(callback_kwargs={"fail": hook})
    with pytest.raises(EngineStartError, match=r"Hooks\.on_.* failed: OSError: no space"):
        await one.start()
    assert one.state().state == "failed"
    assert "no space" in one.state().reason
    assert not one.engine._alive


async def test_or_is_only_logged_where_its_errors_do_not_count(server, caplog):
    one = server(callback_kwargs={"fail": "before"}, raise_error_on_callback=False)
    await one.start()
    assert await texts(one.chat(ASK)) == "ab"
    assert "no space" in caplog.text
    await one.stop()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"callback_class": "penstock.nowhere:Hooks"}, "callback_class"),
        ({"callback_class": "penstock.config:masked"}, "callback_class"),
        ({"callback_class": "builtins:dict"}, "on_before_node_init"),
        ({"callback_class": Hooks, "callback_kwargs": {"nott": 1}}, "nott"),
    ],
)
def test_what_cannot_be_a_callback_is_refused_before_anything_is_loaded(given, told):
    with pytest.raises(ConfigError, match=told):
        LLMServer(config(callback_config=given), engine=Scripted())
