"""A model with several replicas on one machine, on the simulated engine."""

import asyncio
from collections import Counter
from typing import Any

import pytest

from penstock.balance.policies.load import LeastBusy
from penstock.balance.policies.prefix import PrefixAware
from penstock.errors import (
    EngineDeadError,
    EngineError,
    EngineStartError,
    OverloadedError,
    QuarantinedError,
    RequestError,
    UnavailableError,
)
from penstock.llm_config import LLMConfig
from penstock.serve.models.local import LocalModel, build_local_handles
from penstock.serve.models.memory import MemoryBudget
from penstock.serve.models.replicated import ReplicatedModel
from penstock.testing import answer, chat_request
from penstock.types import EmbeddingRequest, Sampling
from warped_time import run_warped

SLOW = {"time_per_token_ms": 100.0}


@pytest.fixture(autouse=True)
def no_threads(monkeypatch):
    """A loop whose time is warped would not wait for a thread."""

    async def at_once(function, *args):
        return function(*args)

    monkeypatch.setattr(asyncio, "to_thread", at_once)


def config(replicas: Any = 2, *, engine_kwargs=None, **deployment):
    counts = (
        {"autoscaling_config": replicas}
        if isinstance(replicas, dict)
        else {"num_replicas": replicas}
    )
    return LLMConfig.from_dict(
        {
            "model_loading_config": {"model_id": "m", "model_source": "simulated"},
            "llm_engine": "simulated",
            "engine_kwargs": engine_kwargs or {},
            "deployment_config": {**counts, **deployment},
        }
    )


def made(*args: Any, **fields: Any) -> ReplicatedModel:
    model = build_local_handles([config(*args, **fields)])["m"]
    assert isinstance(model, ReplicatedModel)
    return model


def served(model):
    return [one.model.server.engine.requests_served for one in model.crew.replicas]


def phases(model):
    return [one.phase for one in model.crew.replicas]


def die(replica):
    replica.model.server.engine._die("killed by the test")


@pytest.fixture
async def two():
    model = made(2, engine_kwargs={"time_per_token_ms": 1.0})
    await model.start()
    yield model
    await model.stop(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}


# Making
def test_one_replica_is_the_plain_model():
    assert isinstance(build_local_handles([config(1)])["m"], LocalModel)


def test_auto_is_up_to_one_a_core(monkeypatch):
    monkeypatch.setattr("penstock.serve.models.local.usable_cores", lambda: (0, 1, 2))
    assert len(made("auto").crew.replicas) == 3
    for asked, there in (({"min_replicas": 4}, 4), ({"min_replicas": 0}, 3)):
        crew = made(asked, num_replicas="auto").crew
        assert (len(crew.replicas), crew.fewest) == (there, asked["min_replicas"])


def test_cores_are_parted_among_all_that_there_may_be(monkeypatch):
    monkeypatch.setattr("penstock.serve.models.replicated.usable_cores", lambda: (0, 2, 1, 3))
    crew = made({"min_replicas": 1, "max_replicas": 2}).crew
    assert [one.model.server.engine.cores for one in crew.replicas] == [(0, 2), (1, 3)]


async def test_ranks_of_a_replica_part_its_cores(monkeypatch):
    monkeypatch.setattr("penstock.serve.models.replicated.usable_cores", lambda: (0, 2, 1, 3))
    given = config(2, engine_kwargs={"data_parallel_size": 2})
    grouped = LLMConfig.from_dict(
        {
            "model_loading_config": {"model_id": "m", "model_source": "simulated"},
            "llm_engine": "simulated",
            "engine_kwargs": {"data_parallel_size": 2},
            "deployment_config": {"num_replicas": 2},
            "server_cls": "penstock.serve:DPServer",
        }
    )
    assert given.engine_kwargs == grouped.engine_kwargs
    model: Any = build_local_handles([grouped])["m"]
    await model.start()
    cores = [rank.cores for one in model.crew.replicas for rank in one.model.server.engine.ranks]
    await model.stop(0)
    assert cores == [(0,), (2,), (1,), (3,)]


# Requests
async def test_all_replicas_answer(two):
    answers = await asyncio.gather(
        *(answer(two, chat_request(f"question {number}")) for number in range(40))
    )
    assert all(one.texts[0] for one in answers)
    assert min(served(two)) >= 10
    assert sum(served(two)) == 40
    await two.embeddings(EmbeddingRequest(["x"]))


@pytest.mark.parametrize(
    ("name", "cls"), [("least_busy", LeastBusy), ("PrefixCacheAffinityRouter", PrefixAware)]
)
def test_the_policy_is_the_configured_one(name, cls):
    model = made(2, request_router_config={"request_router_class": name})
    policy: Any = model.crew.policy
    assert type(policy.policy) is cls


async def test_what_begins_alike_goes_to_one_replica(two):
    text = "The same long beginning. " * 60
    for number in range(6):
        await answer(two, chat_request(f"{text}{number}"))
    assert sorted(served(two)) == [0, 6]


async def test_a_session_stays_on_one_replica():
    model = made(3, request_router_config={"request_router_class": "session_affinity"})
    await model.start()
    places: dict[str, list[int]] = {}
    for session in map(str, range(12)):
        before = served(model)
        for number in range(3):
            await answer(model.for_session(session), chat_request(f"{number}"))
        places[session] = [after - one for one, after in zip(before, served(model), strict=True)]
    await model.stop(0)
    assert all(sorted(place) == [0, 0, 3] for place in places.values())
    assert len(set(map(tuple, places.values()))) > 1


@pytest.fixture
def load_a(tmp_path):
    """The options that load an adapter "a". In "b" beside it is another one."""
    for name in "ba":
        adapter = tmp_path / name
        adapter.mkdir()
        (adapter / "adapter_config.json").write_text('{"r": 8, "peft_type": "LORA"}')
        (adapter / "adapter_model.safetensors").write_bytes(name.encode())
    return {"lora_name": "a", "lora_path": str(adapter)}


async def test_an_adapter_that_one_cannot_load_none_has(two, load_a, monkeypatch):
    async def fail(*_):
        raise EngineError("no room")

    engine = two.crew.replicas[1].model.server.engine
    with monkeypatch.context() as patched:
        patched.setattr(engine, "resolve_lora", fail)
        results = await two.control("load_lora_adapter", load_a)
        assert [one["ok"] for one in results] == [True, False]
    assert await two.adapters() == []
    assert two.state().adapter_names == ()
    results = await two.control("load_lora_adapter", load_a)
    assert [one["ok"] for one in results] == [True, True]
    with monkeypatch.context() as patched:
        patched.setattr(engine, "resolve_lora", fail)
        moved = {**load_a, "lora_path": f"{load_a['lora_path'][:-1]}b", "load_inplace": True}
        assert not (await two.control("load_lora_adapter", moved))[1]["ok"]
    assert [one.model.server.store.given["a"] for one in two.crew.replicas] == [
        load_a["lora_path"]
    ] * 2


async def test_a_name_that_is_no_text_is_refused(two):
    for method in ("unload_lora_adapter", "sleep"):
        with pytest.raises(RequestError, match="lora_name"):
            await two.control(method, {"lora_name": []})


async def test_an_adapter_stays_where_it_is_loaded(two, load_a):
    results = await two.control("load_lora_adapter", load_a)
    assert [one["replica"] for one in results] == ["local-0", "local-1"]
    assert await two.adapters() == ["a"]
    assert two.state().adapter_names == ("a",)


async def test_both_classes_are_answered(two):
    online, batch = two, two.for_batch()
    got = await asyncio.gather(
        *(answer(handle, chat_request(str(n))) for handle in (online, batch) for n in range(20))
    )
    assert len(got) == 40
    assert isinstance(two.for_session("s").for_batch().state().replicas, dict)


async def test_one_that_is_full_passes_requests_on():
    model = made(2, max_ongoing_requests=1, max_queued_requests=0, engine_kwargs=SLOW)
    await model.start()
    tasks = [asyncio.create_task(answer(model, chat_request(str(n)))) for n in range(2)]
    await asyncio.sleep(0.05)
    with pytest.raises(OverloadedError):
        await answer(model, chat_request("one too many"))
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await model.stop(0)


# Deaths
def test_requests_without_a_token_move_from_a_dead_replica():
    async def main():
        model = made(2, engine_kwargs={"time_to_first_token_ms": 1000.0, "start_ms": 60000.0})
        await model.start()
        began = asyncio.get_running_loop().time()
        asked = [asyncio.create_task(answer(model, chat_request(str(n)))) for n in range(20)]
        await asyncio.sleep(0.5)
        die(model.crew.replicas[0])
        answers = await asyncio.gather(*asked)
        took = asyncio.get_running_loop().time() - began
        assert phases(model) == ["loading", "ready"]
        while phases(model) != ["ready", "ready"]:  # noqa: ASYNC110
            await asyncio.sleep(1)
        state = model.state()
        await model.stop(0)
        return len(answers), took, state

    count, took, state = run_warped(main())
    assert count == 20
    assert took < 60
    assert (state.restarts, state.replicas["local-0"].restarts) == (1, 1)


def test_both_may_die_and_nothing_is_lost():
    async def main():
        model = made(2, engine_kwargs={"time_to_first_token_ms": 1000.0})
        await model.start()
        asked = [asyncio.create_task(answer(model, chat_request(str(n)))) for n in range(20)]
        await asyncio.sleep(0.5)
        for replica in model.crew.replicas:
            die(replica)
        answers = await asyncio.gather(*asked)
        await model.stop(0)
        return answers

    assert len(run_warped(main())) == 20


def test_what_kills_replicas_is_found_and_the_others_are_answered():
    async def main():
        model = made(2, engine_kwargs={"time_to_first_token_ms": 100.0, "die_on": "poison"})
        await model.start()
        texts = ["poison", *map(str, range(12))]
        asked = [answer(model, chat_request(text), patience=3600) for text in texts]
        ended = await asyncio.gather(*asked, return_exceptions=True)
        await model.stop(0)
        return ended

    killer, *others = run_warped(main())
    assert type(killer).__name__ == "QuarantinedError"
    assert not [one for one in others if isinstance(one, BaseException)]


@pytest.mark.parametrize("concurrency", [1, 8, 64])
def test_innocent_requests_are_all_answered(concurrency):
    async def main():
        model = made(2, engine_kwargs={"output_tokens": 2, "die_on": "poison"})
        await model.start()
        places = asyncio.Semaphore(concurrency)

        async def one(number):
            text = f"{'poison' if number % 30 == 7 else 'text'} {number}"
            async with places:
                try:
                    await answer(model, chat_request(text, stream=False), patience=36000)
                except QuarantinedError:
                    return "refused"
            return "answered"

        outcomes = await asyncio.gather(*map(one, range(60)))
        await model.stop(0)
        return outcomes

    expected = ["refused" if number % 30 == 7 else "answered" for number in range(60)]
    assert run_warped(main()) == expected


async def test_a_stream_that_has_begun_is_not_repeated():
    model = made(2, engine_kwargs=SLOW)
    await model.start()
    stream = model.chat(chat_request("x", Sampling(max_tokens=50)))
    await anext(stream)
    (busy,) = (one for one in model.crew.replicas if one.running)
    die(busy)
    with pytest.raises(EngineDeadError):
        async for _ in stream:
            pass
    assert [one.running for one in model.crew.replicas] == [0, 0]
    await model.stop(0)


# Scaling
SCALING = {
    "min_replicas": 1,
    "max_replicas": 3,
    "target_ongoing_requests": 2,
    "upscale_delay_s": 3,
    "downscale_delay_s": 5,
    "look_back_period_s": 0,
}


def test_replicas_come_with_requests_and_go_without_losing_any():
    async def main():
        model = made(SCALING, engine_kwargs={"time_per_token_ms": 1000.0, "output_tokens": 20})
        await model.start()
        seen = [phases(model)]
        first = [asyncio.create_task(answer(model, chat_request(str(n)))) for n in range(6)]
        await asyncio.sleep(8)
        seen.append(phases(model))
        later = [asyncio.create_task(answer(model, chat_request(f"{n}"))) for n in range(6)]
        await asyncio.sleep(1)
        spread = [one.running for one in model.crew.replicas]
        answers = await asyncio.gather(*first, *later)
        await asyncio.sleep(60)
        seen.append(phases(model))
        await model.stop(0)
        return seen, spread, answers

    seen, spread, answers = run_warped(main())
    assert seen == [["ready", "cold", "cold"], ["ready"] * 3, ["ready", "cold", "cold"]]
    assert all(spread)
    assert len(answers) == 12


def test_one_that_is_not_wanted_finishes_what_it_has():
    async def main():
        model = made(
            {**SCALING, "initial_replicas": 2, "downscale_delay_s": 1},
            engine_kwargs={"time_per_token_ms": 1000.0, "output_tokens": 30},
            request_router_config={"request_router_class": "round_robin"},
        )
        await model.start()
        asked = [asyncio.create_task(answer(model, chat_request(str(n)))) for n in range(2)]
        await asyncio.sleep(10)
        seen = [(model.crew.wanted, phases(model))]
        answers = await asyncio.gather(*asked)
        await asyncio.sleep(1)
        seen.append((model.crew.wanted, phases(model)))
        await model.stop(0)
        return seen, answers

    seen, answers = run_warped(main())
    assert seen == [(1, ["ready", "ready", "cold"]), (1, ["ready", "cold", "cold"])]
    assert len(answers) == 2


def test_all_go_where_none_need_stay_and_a_request_brings_one_back():
    async def main():
        model = made({**SCALING, "min_replicas": 0, "downscale_to_zero_delay_s": 20})
        await model.start()
        seen = [(model.state().state, model.state().on_demand)]
        await answer(model, chat_request("x"))
        seen.append(phases(model))
        await asyncio.sleep(15)
        seen.append(phases(model))
        await asyncio.sleep(10)
        seen.append(phases(model))
        await answer(model, chat_request("x"))
        seen.append(phases(model))
        await model.stop(0)
        return seen

    one, none = ["ready", "cold", "cold"], ["cold"] * 3
    assert run_warped(main()) == [("cold", True), one, one, none, one]


def test_short_requests_keep_the_last_one():
    async def main():
        model = made({**SCALING, "min_replicas": 0, "downscale_to_zero_delay_s": 20})
        await model.start()
        for number in range(10):  # each ends long before somebody looks
            await answer(model, chat_request(str(number)))
            await asyncio.sleep(7)
        seen = [phases(model), model.state().loads]
        await asyncio.sleep(20)
        seen.append(phases(model))
        await model.stop(0)
        return seen

    assert run_warped(main()) == [["ready", "cold", "cold"], 1, ["cold"] * 3]


def test_a_further_replica_takes_only_memory_that_is_free(caplog):
    async def main():
        given = config(
            {**SCALING, "upscale_delay_s": 0},
            engine_kwargs={"time_per_token_ms": 1000.0, "output_tokens": 20},
            ray_actor_options={"memory": 60},
        )
        budget = MemoryBudget(130)
        model = ReplicatedModel(given, budget)
        await model.start()
        answers = [asyncio.create_task(answer(model, chat_request(str(n)))) for n in range(6)]
        await asyncio.sleep(5)
        seen = sorted(phases(model)), budget.used
        await asyncio.gather(*answers)
        await model.stop(0)
        return seen, budget.used

    assert run_warped(main()) == ((["cold", "ready", "ready"], 120), 0)
    assert caplog.text.count("there is no memory for the replica") == 1


def test_the_fewest_wait_for_room():
    async def main():
        budget = MemoryBudget(100)
        given = config(2, ray_actor_options={"memory": 60})
        model = ReplicatedModel(given, budget)
        starting = asyncio.create_task(model.start())
        await asyncio.sleep(1)
        seen = sorted(phases(model))
        await answer(model, chat_request("x"))
        await model.stop(0)
        await asyncio.gather(starting, return_exceptions=True)
        return seen

    assert run_warped(main()) == ["loading", "ready"]


async def test_a_start_that_fails_says_why():
    model = ReplicatedModel(config(2))

    async def no() -> None:
        raise EngineStartError("no such file")

    model.crew.replicas[1].model.server.engine.start = no  # type: ignore[method-assign]
    with pytest.raises(EngineStartError, match="no such file"):
        await model.start()
    assert model.state().state == "ready"
    assert (await answer(model, chat_request("x"))).texts[0]
    await model.stop(0)


# Control
async def test_operations_reach_all_and_later_ones():
    model = made({**SCALING, "max_replicas": 2})
    await model.start()
    results = await model.control("pause", {"mode": "wait"})
    assert [(one["replica"], one["ok"]) for one in results] == [("local-0", True)]
    assert [one.model.server.paused for one in model.crew.replicas] == ["wait", "wait"]
    assert model.state().state == "paused"
    await model.control("resume", {})
    await model.control("sleep", {})
    assert model.state().state == "asleep"
    with pytest.raises(UnavailableError, match="asleep"):
        await answer(model, chat_request("x"))
    await model.control("wakeup", {})
    assert (await answer(model, chat_request("x"))).texts[0]
    await model.stop(0)


def test_a_wakeup_loads_no_replica_that_became_too_many_in_its_sleep():
    async def main():
        model = made({**SCALING, "max_replicas": 2, "initial_replicas": 2})
        await model.start()
        await answer(model, chat_request("x"))
        await model.control("sleep", {})
        seen = [phases(model)]
        await asyncio.sleep(60)
        seen.append(phases(model))
        await model.control("wakeup", {})
        seen.append(phases(model))
        await model.stop(0)
        return seen

    assert run_warped(main()) == [["asleep", "asleep"], ["asleep", "cold"], ["ready", "cold"]]


def test_what_was_unloaded_stays_so_until_somebody_needs_it():
    async def main():
        model = made({**SCALING, "initial_replicas": 2, "downscale_delay_s": 1000})
        await model.start()
        await answer(model, chat_request("x"))
        await model.control("unload_model", {})
        await asyncio.sleep(60)
        seen = [phases(model)]
        await answer(model, chat_request("x"))
        await asyncio.sleep(5)
        seen.append(phases(model))
        await model.control("unload_model", {})
        await model.control("load_model", {})
        await asyncio.sleep(5)
        seen.append(phases(model))
        await model.stop(0)
        return seen

    both = ["ready", "ready", "cold"]
    assert run_warped(main()) == [["cold"] * 3, both, both]


@pytest.mark.parametrize("refused", ["an option", "a pause"])
def test_what_refuses_to_be_unloaded_is_kept_loaded(refused):
    async def main():
        model = made(2)
        await model.start()
        if refused == "a pause":
            await model.control("pause", {"mode": "keep"})
            results = await model.control("unload_model", {})
            assert [one["ok"] for one in results] == [False, False]
            await model.control("resume", {})
        else:
            with pytest.raises(RequestError):
                await model.control("unload_model", {"level": 1})
        await model.crew.replicas[0].model.unload()
        await asyncio.sleep(60)
        ended = phases(model)
        await model.stop(0)
        return ended

    assert run_warped(main()) == ["ready", "ready"]


async def test_questions_are_for_those_that_run(two):
    results = await two.control("check_health", {})
    assert Counter(one["ok"] for one in results) == {True: 2}
    await two.control("sleep", {})
    results = await two.control("is_sleeping", {})
    assert [one["result"] for one in results] == [True, True]


# The end
def test_a_stop_drains_all():
    async def main():
        model = made(2, engine_kwargs={"time_per_token_ms": 1000.0})
        await model.start()
        asked = [asyncio.create_task(answer(model, chat_request(str(n)))) for n in range(10)]
        await asyncio.sleep(1)
        await model.stop(60)
        return [len((await one).texts[0]) for one in asked], phases(model)

    lengths, ended = run_warped(main())
    assert all(lengths)
    assert ended == ["cold", "cold"]


async def test_engines_count_together(two):
    await asyncio.gather(*(answer(two, chat_request(str(n))) for n in range(10)))
    state = two.state()
    assert (state.loads, state.running) == (2, 0)
    assert [one.loads for one in state.replicas.values()] == [1, 1]
    assert "steps" in await two.engine_metrics()
