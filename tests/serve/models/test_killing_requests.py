"""Requests that kill the engine, among others that do not."""

import asyncio
import random

import pytest

from penstock.engines.simulated.engine import SimulatedEngine
from penstock.errors import EngineDeadError, QuarantinedError
from penstock.llm_config import LLMConfig
from penstock.serve.models.local import LocalModel
from penstock.testing import answer, chat_request
from penstock.types import Sampling

FATAL = "fatal"
GREEDY = Sampling(temperature=0.0, max_tokens=2)


async def served(**options):
    config = LLMConfig.from_dict(
        {"model_loading_config": {"model_id": "m"}, "llm_engine": "simulated"}
    )
    model = LocalModel(config, engine=SimulatedEngine(engine_kwargs={"die_on": FATAL, **options}))
    await model.start()
    return model


async def outcome(model, text, **about):
    try:
        return (await answer(model, chat_request(text, GREEDY, **about))).texts[0]
    except QuarantinedError as error:
        return error.status


@pytest.mark.parametrize("concurrency", [1, 2, 8, 64, 256])
@pytest.mark.parametrize("options", [{}, {"time_per_token_ms": 0.01}, {"max_num_seqs": 4}])
async def test_innocent_requests_are_all_answered(concurrency, options):
    texts = [f"{FATAL if number % 30 == 7 else 'text'} {number}" for number in range(300)]
    random.Random(concurrency).shuffle(texts)
    model, clean = await served(**options), await served()
    places = asyncio.Semaphore(concurrency)

    async def one(text):
        async with places:
            return await outcome(model, text, stream=False)

    found = await asyncio.gather(*(one(text) for text in texts))
    expected = [
        400 if FATAL in text else await outcome(clean, text, stream=False) for text in texts
    ]
    assert found == expected
    assert model.state().state == "ready"
    assert model.state().restarts <= 10 * (concurrency.bit_length() + 3)
    restarts = model.state().restarts
    # From whomever, however it is asked.
    assert await outcome(model, f"{FATAL} 7", stream=True) == 400
    assert model.state().restarts == restarts
    await model.stop()
    await clean.stop()


async def test_killers_in_a_row_do_not_make_the_model_fail():
    model = await served()
    for number in range(20):
        assert await outcome(model, f"{FATAL} {number}") == 400
    assert model.state().state == "ready"
    assert model.state().restarts == 40
    await model.stop()


async def test_a_stream_that_kills_in_its_middle_is_refused_after_two_deaths(monkeypatch):
    model = await served(time_per_token_ms=0.01)
    engine = model.server.engine
    emit = engine._emit

    def dies_at_the_third(item):
        item.kills = item.emitted >= 2 and b"late" in bytes(item.request.prompt.encode())
        return emit(item)

    monkeypatch.setattr(engine, "_emit", dies_at_the_third)
    for _ in range(2):
        with pytest.raises(EngineDeadError):
            await answer(model, chat_request("late", Sampling(temperature=0.0, max_tokens=8)))
        assert await outcome(model, "Hello")
    with pytest.raises(QuarantinedError):
        await answer(model, chat_request("late", Sampling(temperature=0.0, max_tokens=8)))
    await model.stop()


async def test_a_call_that_kills_is_refused_like_an_answer(monkeypatch):
    model = await served()
    engine = model.server.engine
    tokenize = engine.tokenize

    async def dies(text):
        if text == FATAL:
            engine._die("of a text")
            raise EngineDeadError("of a text")
        return await tokenize(text)

    monkeypatch.setattr(engine, "tokenize", dies)
    found = await asyncio.gather(
        *(model.tokenize(text) for text in ("a", FATAL, "b")),
        outcome(model, "Hello"),
        return_exceptions=True,
    )
    assert [type(one) for one in found] == [list, QuarantinedError, list, str]
    with pytest.raises(QuarantinedError):
        await model.tokenize(FATAL)
    await model.stop()
