import asyncio
import json
import os
import signal
from typing import ClassVar

import pytest
import pytest_asyncio

from penstock import demo
from penstock.engines.sglang import options
from penstock.engines.sglang.engine import SGLangEngine
from penstock.engines.simulated.answers import seeded
from penstock.errors import (
    ConfigError,
    ContextLengthError,
    EngineError,
    EngineStartError,
    MissingExtraError,
    ModelNotFoundError,
    UnsupportedError,
)
from penstock.testing import GREEDY, EngineContract, answer, chat_request
from penstock.types import (
    ChoiceQuestion,
    DecideRequest,
    EmbeddingRequest,
    Option,
    PredicateQuestion,
    Sampling,
)

LORA = {"enable_lora": True, "max_lora_rank": 16, "lora_target_modules": ["all"]}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(stand_in):
    engine = SGLangEngine(
        "demo", engine_kwargs={**LORA, "context_length": 2048, "max_running_requests": 8}
    )
    await engine.start()
    yield engine
    await engine.stop()


class TestContract(EngineContract):
    adapters: ClassVar = {name: str(demo.adapter_path(name)) for name in ("summary", "german")}

    async def kill(self, engine):
        os.kill(engine._process.pid, signal.SIGKILL)
        return True


@pytest.fixture
async def started(stand_in):
    """Engines, stopped at the end."""
    engines = []

    async def start(**given):
        engine = SGLangEngine("demo", engine_kwargs=given)
        engines.append(engine)
        await engine.start()
        return engine

    yield start
    for engine in engines:
        await engine.stop()


# Options
def test_without_the_package_its_extra_is_named(monkeypatch):
    options.package.cache_clear()
    monkeypatch.setattr(options, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"penstock\[sglang\]"):
        SGLangEngine("demo")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"mem_fraction": 0.8},
            "engine_kwargs.mem_fraction: unknown key 'mem_fraction'.*mem_fraction_static",
        ),
        ({"model_path": "x"}, "engine_kwargs.model_path: is another model than model_source, demo"),
        ({"tool_call_parser": "hermess"}, "no parser is called 'hermess'.*hermes"),
        ({"skip_tokenizer_init": True}, "not possible"),
    ],
)
def test_wrong_arguments_are_named_before_anything_starts(stand_in, given, message):
    with pytest.raises(ConfigError, match=message):
        SGLangEngine("demo", engine_kwargs=given)


def test_the_model_may_be_named_once_more(stand_in):
    assert "model_path" not in SGLangEngine("demo", engine_kwargs={"model_path": "demo"}).options


def test_an_old_version_is_refused_and_a_new_one_noted(monkeypatch):
    monkeypatch.setattr(options, "version", lambda: "0.4.9.post1")
    with pytest.raises(
        EngineStartError, match=r"SGLang 0\.4\.9\.post1 is not supported.*0\.5\.20 to 0\.5\.23"
    ):
        options.check_version()
    monkeypatch.setattr(options, "version", lambda: "0.6.0")
    options.check_version()
    assert "SGLang 0.6.0 is not among" in options.version_note()
    monkeypatch.setattr(options, "version", lambda: "0.5.23")
    assert options.version_note() == ""


def test_the_context_is_known_without_loading(stand_in):
    assert SGLangEngine("demo", engine_kwargs={"context_length": 99}).stated_context_length() == 99
    assert SGLangEngine("demo").stated_context_length() == demo_context()


def demo_context():
    return json.loads((demo.model_path("huggingface") / "config.json").read_text())[
        "max_position_embeddings"
    ]


def test_an_adapter_of_too_high_a_rank_never_reaches_the_engine(stand_in):
    adapters = {"summary": str(demo.adapter_path("summary"))}
    with pytest.raises(ModelNotFoundError, match="max_lora_rank is 2"):
        SGLangEngine("demo", engine_kwargs={**LORA, "max_lora_rank": 2}, adapters=adapters)


# Starting
async def test_a_failing_start_says_why(started):
    with pytest.raises(EngineStartError, match="could not be loaded: Initialization failed"):
        await started(json_model_override_args='{"a": 1}')


async def test_a_directory_that_is_not_there_is_named(stand_in):
    with pytest.raises(EngineStartError, match=r"no model directory '\./nowhere'"):
        await SGLangEngine("./nowhere").start()


async def test_nothing_reaches_standard_output(started, capfd):
    await started()
    written = capfd.readouterr()
    assert written.out == ""
    assert "must not go to standard output" in written.err


# What it can do
async def test_an_embedding_model_embeds_and_does_not_chat(started):
    engine = await started(is_embedding=True)
    vectors = await engine.embeddings(EmbeddingRequest(["a", "bc"], dimensions=4))
    assert [len(vector) for vector in vectors.vectors] == [4, 4]
    assert vectors.usage.prompt_tokens == 3
    with pytest.raises(UnsupportedError, match="sglang"):
        await answer(engine, chat_request("hello"))


async def test_capabilities_follow_the_arguments(started):
    engine = await started(grammar_backend="none", disable_radix_cache=True, max_running_requests=3)
    able = engine.capabilities
    assert (able.structured, able.prefix_caching, able.max_concurrency, able.adapters) == (
        frozenset(),
        False,
        3,
        False,
    )
    with pytest.raises(UnsupportedError, match="enable_lora"):
        await engine.resolve_lora("summary", str(demo.adapter_path("summary")))


# Control
async def test_sleep_waits_for_requests_and_holds_new_ones(started):
    engine = await started(enable_memory_saver=True)
    long = asyncio.create_task(
        answer(engine, chat_request("a", Sampling(temperature=0, max_tokens=500, ignore_eos=True)))
    )
    await engine.metrics()
    await engine.sleep()
    assert long.done() or (await long).usage.completion_tokens == 500
    assert await engine.is_sleeping()
    waiting = asyncio.create_task(answer(engine, chat_request("b")))
    await engine.check_health()
    assert not waiting.done()
    await engine.wakeup()
    assert (await waiting).texts[0]
    assert not await engine.is_sleeping()


async def test_held_requests_keep_it_awake(started):
    engine = await started(enable_memory_saver=True)
    endless = Sampling(temperature=0, max_tokens=3000, ignore_eos=True)
    held = asyncio.create_task(answer(engine, chat_request("a", endless)))
    await engine.metrics()  # the request is there before
    await engine.pause("keep")
    with pytest.raises(EngineError, match="resume before"):
        await engine.sleep()
    await engine.resume()
    assert (await held).usage.completion_tokens == 3000


async def test_sleep_needs_the_memory_saver(started):
    engine = await started()
    with pytest.raises(UnsupportedError, match="enable_memory_saver"):
        await engine.sleep()


@pytest.mark.parametrize("mode", ["wait", "keep", "abort"])
async def test_pause(started, mode):
    engine = await started()
    endless = Sampling(temperature=0, max_tokens=3000, ignore_eos=True)
    running = asyncio.create_task(
        answer(engine, chat_request("a", endless if mode != "wait" else GREEDY))
    )
    while not (await engine.metrics())["requests_running"] and not running.done():
        pass
    await engine.pause(mode)
    assert await engine.is_paused()
    if mode == "abort":
        assert (await running).reasons[0] == "abort"
    waiting = asyncio.create_task(answer(engine, chat_request("b")))
    await engine.check_health()
    assert not waiting.done()
    assert running.done() or mode == "keep"
    await engine.resume()
    assert (await waiting).texts[0]
    assert (await running).reasons[0] in ("stop", "length", "abort")
    assert not await engine.is_paused()


async def test_a_pause_that_is_given_up_holds_nobody(started):
    engine = await started()
    endless = Sampling(temperature=0, max_tokens=3000, ignore_eos=True)
    running = asyncio.create_task(answer(engine, chat_request("a", endless)))
    while not (await engine.metrics())["requests_running"]:
        pass
    pause = asyncio.create_task(engine.pause("wait"))
    await asyncio.sleep(0)  # it is sent
    await engine.metrics()  # and there, before this is answered
    pause.cancel()
    await asyncio.wait([pause])
    assert (await answer(engine, chat_request("b"))).texts[0]
    running.cancel()


async def test_the_rest_of_control(started):
    engine = await started()
    await engine.reset_prefix_cache()
    await engine.start_profile()
    await engine.stop_profile()
    assert await engine.collective_rpc("save_sharded_model", kwargs={"path": "x"}) is None
    with pytest.raises(EngineError, match="no such method"):
        await engine.collective_rpc("nothing")
    with pytest.raises(UnsupportedError, match="by name only"):
        await engine.collective_rpc("save_sharded_model", ["x"])


async def test_an_adapter_given_again_replaces_the_former(started, tmp_path):
    engine = await started(**LORA)
    for path in ("summary", "german", "summary"):
        await engine.resolve_lora("mine", str(demo.adapter_path(path)))
    first = (await answer(engine, chat_request("x", adapter="mine"))).texts[0]
    await engine.resolve_lora("mine", str(demo.adapter_path("german")))
    assert (await answer(engine, chat_request("x", adapter="mine"))).texts[0] != first
    await engine.remove_lora("mine")
    with pytest.raises(ModelNotFoundError):
        await answer(engine, chat_request("x", adapter="mine"))


# Decisions
async def test_decisions_by_the_score_call(started):
    engine = await started(max_running_requests=8)
    labels = ("red", "rose", "blue")
    question = ChoiceQuestion("Which?", tuple(map(Option, labels)), "color")
    (found,) = (await engine.decide(DecideRequest("a ticket", (question,)))).items
    text = "Answer with one of these:\n- red\n- rose\n- blue\nWhich?"
    stem = [*f"a ticket\n\n{text}\n".encode()]

    def chances(place, tokens):
        draw = seeded(0, "score", [*stem, *place])
        weights = [draw.random() for _ in range(256)]
        return [weights[token] / sum(weights[one] for one in tokens) for token in tokens]

    r, b = chances(b"", b"rb")
    e, o = chances(b"r", b"eo")
    assert found.probabilities == pytest.approx([r * e, r * o, b])
    many = tuple(PredicateQuestion(f"Is it {number}?") for number in range(400))
    decisions = await engine.decide(DecideRequest("a ticket", many))
    assert [sum(one.probabilities) for one in decisions.items] == pytest.approx([1.0] * 400)


async def test_decisions_that_cannot_be_made_are_refused(started):
    engine = await started(context_length=256)
    question = PredicateQuestion("Is it true?")
    with pytest.raises(ContextLengthError, match="an input with a question"):
        await engine.decide(DecideRequest("long " * 60, (question,)))
    joining = await started(enable_mis=True)
    with pytest.raises(UnsupportedError, match="decide"):
        await joining.decide(DecideRequest("a", (question,)))
