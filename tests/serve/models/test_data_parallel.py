"""Groups of ranks behind one server."""

import asyncio
from typing import Any

import pytest

from penstock.balance.policies.load import LeastLoaded
from penstock.balance.policies.prefix import PrefixAware
from penstock.engines.simulated.engine import SimulatedEngine
from penstock.errors import ConfigError, EngineDeadError
from penstock.llm_config import LLMConfig
from penstock.serve.config.placement import deployment_options, replica_bundles
from penstock.serve.config.serving_args import LLMServingArgs, load_serving_args
from penstock.serve.models.data_parallel import DPServer, EngineGroup, as_group, grouped
from penstock.serve.models.local import build_local_handles
from penstock.testing import answer, chat_request
from penstock.types import Sampling


def config(ranks=3, **fields):
    options = {"data_parallel_size": ranks, **fields.pop("engine_kwargs", {})}
    loading = {"model_id": "m", "model_source": "simulated"}
    return LLMConfig.from_dict(
        {
            "model_loading_config": loading,
            "llm_engine": "simulated",
            "engine_kwargs": options,
            **fields,
        }
    )


@pytest.fixture
async def server():
    one = DPServer(config())
    await one.start()
    yield one
    await one.stop()


# Making
def test_a_group_has_at_least_two_ranks():
    for wrong in (config(1), LLMConfig.from_dict({"model_loading_config": {"model_id": "m"}})):
        with pytest.raises(ConfigError, match="data_parallel_size: must be at least 2"):
            as_group(wrong)


def test_ranks_are_engines_of_their_own(server):
    assert isinstance(server.engine, EngineGroup)
    assert [type(rank) for rank in server.engine.ranks] == [SimulatedEngine] * 3
    assert "data_parallel_size" not in server.engine.ranks[0].engine_kwargs


def test_the_policy_that_is_named_chooses_the_rank():
    def policy(**deployment):
        group: Any = DPServer(config(deployment_config=deployment)).engine
        return type(group._pool.policy.policy)

    assert policy() is LeastLoaded
    assert (
        policy(request_router_config={"request_router_class": "PrefixCacheAffinityRouter"})
        is PrefixAware
    )


def test_wrong_options_of_a_rank_are_named():
    with pytest.raises(ConfigError, match=r"engine_kwargs\.output_token"):
        DPServer(config(engine_kwargs={"output_token": 3}))


class OwnRanks(SimulatedEngine):
    makes_ranks = True

    def __init__(self, model_source, **kwargs):
        self.given = dict(kwargs.pop("engine_kwargs"))
        super().__init__(model_source, **kwargs)


def test_an_engine_that_makes_ranks_itself_is_left_to_do_so(monkeypatch):
    monkeypatch.setattr("penstock.serve.models.data_parallel.engine_type", lambda config: OwnRanks)
    monkeypatch.setattr("penstock.serve.models.server.engine_type", lambda config: OwnRanks)
    engine = DPServer(config(4)).engine
    assert isinstance(engine, OwnRanks)
    assert engine.given == {"data_parallel_size": 4}


# Placing
def test_a_replica_holds_the_bundles_of_all_its_ranks():
    options = {"data_parallel_size": 2, "tensor_parallel_size": 2}
    one = LLMConfig.from_dict(
        {"model_loading_config": {"model_id": "m"}, "llm_engine": "vLLM", "engine_kwargs": options}
    )
    assert replica_bundles(one) == [
        {"CPU": 1.0, "GPU": 1.0},
        {"GPU": 1.0},
        {"GPU": 1.0},
        {"GPU": 1.0},
    ]
    assert DPServer.get_deployment_options(one)["placement_group_strategy"] == "STRICT_PACK"
    assert deployment_options(one)["placement_group_strategy"] == "PACK"


# Living
async def test_all_ranks_answer(server):
    greedy = Sampling(temperature=0, max_tokens=8)
    results = await asyncio.gather(
        *(answer(server, chat_request(f"row {n}", greedy)) for n in range(30))
    )
    assert all(result.reasons[0] in ("stop", "length") for result in results)
    assert [rank.requests_served for rank in server.engine.ranks] == [10, 10, 10]


async def test_a_dead_rank_restarts_the_group_and_requests_without_a_token_are_asked_again(server):
    endless = chat_request("long", Sampling(temperature=0, max_tokens=9000, ignore_eos=True))
    begun = server.chat(endless)
    await anext(begun)  # on the first rank, which lives
    dead = server.engine.ranks[1]
    dead._die("killed")
    result = await answer(server, chat_request("next"))  # meets the dead rank, and is asked again
    assert result.texts[0]
    assert server.state().restarts == 1
    with pytest.raises(EngineDeadError):
        async for _ in begun:
            pass
    await server.engine.check_health()


async def test_it_drains_as_a_whole(server):
    limited = Sampling(temperature=0, max_tokens=400, ignore_eos=True)
    running = [asyncio.create_task(answer(server, chat_request(f"{n}", limited))) for n in range(6)]
    while sum(server.engine.running) < 6:  # noqa: ASYNC110 - nobody announces it
        await asyncio.sleep(0)
    await server.stop(drain_timeout_s=60)
    for task in running:
        assert (await task).usage.completion_tokens == 400
    for rank in server.engine.ranks:
        with pytest.raises(EngineDeadError):
            await rank.check_health()


async def test_control_reaches_every_rank(server):
    await server.reset_prefix_cache()
    await server.sleep()
    for rank in server.engine.ranks:
        with pytest.raises(EngineDeadError):
            await rank.check_health()
    await server.wakeup()
    await server.engine.check_health()


# Reaching it
async def test_the_local_runtime_serves_it():
    handle: Any = build_local_handles([as_group(config())])["m"]
    await handle.start()
    try:
        assert isinstance(handle.server, DPServer)
        assert (await answer(handle, chat_request("x"))).texts[0]
    finally:
        await handle.stop()


def test_a_serve_file_with_its_builder_makes_groups(tmp_path):
    file = tmp_path / "serve.yaml"
    file.write_text("""
applications:
  - name: llm
    import_path: ray.serve.llm:build_dp_openai_app
    args:
      llm_config:
        model_loading_config: {model_id: m, model_source: simulated}
        llm_engine: simulated
        engine_kwargs: {data_parallel_size: 2}
""")
    (one,) = load_serving_args(file).llm_configs
    assert one.server_cls is DPServer
    file.write_text(file.read_text().replace("data_parallel_size: 2", "output_tokens: 2"))
    with pytest.raises(ConfigError, match=r"serve\.yaml: data parallel: .*at least 2"):
        load_serving_args(file)


def test_a_server_of_ones_own_stays():
    class Mine(DPServer):
        pass

    args = LLMServingArgs(llm_configs=[config(server_cls=Mine)])
    assert grouped(args).llm_configs[0].server_cls is Mine
