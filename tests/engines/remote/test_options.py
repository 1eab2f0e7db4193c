"""Options of the engine, checked before anything starts."""

import sys

import pytest

from penstock.engines.base import engine_class
from penstock.engines.remote.engine import RemoteEngine
from penstock.errors import (
    ConfigError,
    EngineDeadError,
    EngineStartError,
    MissingExtraError,
    RequestError,
)
from penstock.testing import answer, chat_request
from penstock.types import (
    CompletionRequest,
    Sampling,
)
from scripted_api import remote

KEY = "sk-very-secret-1234"


def whole(text="hi", sampling=None, **fields):
    return chat_request(text, sampling or Sampling(), stream=False, **fields)


def test_the_table_knows_it():
    assert engine_class("remote") is RemoteEngine


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    for module in [
        name
        for name in sys.modules
        if name.startswith(("penstock.engines.remote", "penstock.http.client"))
    ]:
        monkeypatch.delitem(sys.modules, module)
    with pytest.raises(
        MissingExtraError,
        match=r"The remote engine needs .*'aiohttp'.*pip install 'penstock\[http\]'",
    ):
        engine_class("remote")


def test_keys_that_are_given_in_the_open_are_not_shown():
    options = {
        "upstreams": [{"base_url": "http://h", "headers": {"Authorization": f"Bearer {KEY}"}}]
    }
    assert KEY not in repr(RemoteEngine("m", engine_kwargs=options).options)


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        ({}, "say where the server is"),
        ({"base_url": "nowhere"}, "must be an http"),
        ({"base_url": "http://h/v1#x"}, r"base_url: must end where /chat/completions begins"),
        ({"base_url": "http://h/v1/chat/completions/"}, "must end where /chat/completions begins"),
        ({"upstreams": [{"base_url": "nowhere"}]}, r"upstreams\[0\].base_url: must be an http"),
        ({"base_ulr": "http://h"}, "Did you mean 'base_url'"),
        ({"base_url": "http://h", "upstreams": [{"base_url": "http://h"}]}, "not both"),
        ({"upstreams": [{"base_url": "http://h"}], "api_key_env": "K"}, "belongs to one server"),
        (
            {"upstreams": [{"base_url": "http://h", "wieght": 1}]},
            r"upstreams\[0\].*Did you mean 'weight'",
        ),
        ({"upstreams": [{"base_url": "http://h", "weight": 0}]}, r"upstreams\[0\].weight"),
        (
            {"base_url": "http://h", "routing": "prefix_awar"},
            r"routing: there is no .*Did you mean 'prefix_aware'",
        ),
        ({"base_url": "http://h", "concurrency": 0}, "engine_kwargs.concurrency"),
        ({"base_url": "http://h", "tasks": ["chatt"]}, "engine_kwargs.tasks"),
    ],
)
def test_wrong_options_are_known_before_anything_starts(options, hint):
    with pytest.raises(ConfigError, match=hint):
        RemoteEngine("m", engine_kwargs=options)


def test_auto_needs_discovery():
    with pytest.raises(ConfigError, match="must be named"):
        RemoteEngine("auto", engine_kwargs={"base_url": "http://h", "discover": False})


async def test_a_key_that_is_not_set_is_named_at_the_start():
    engine = RemoteEngine(
        "m", engine_kwargs={"base_url": "http://127.0.0.1:1", "api_key_env": "NOT_SET_AT_ALL"}
    )
    with pytest.raises(EngineStartError, match="NOT_SET_AT_ALL is not set"):
        await engine.start()


async def test_before_the_start_it_is_dead():
    engine = RemoteEngine("m", engine_kwargs={"base_url": "http://127.0.0.1:1"})
    with pytest.raises(EngineDeadError):
        await answer(engine, whole())


async def test_an_empty_prompt_is_refused_here(script):
    async with remote(script) as engine:
        with pytest.raises(RequestError):
            await answer(engine, CompletionRequest("", Sampling()))
