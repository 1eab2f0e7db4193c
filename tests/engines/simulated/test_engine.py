import asyncio

import pytest
import pytest_asyncio

from penstock.engines.simulated.answers import instance, seeded
from penstock.engines.simulated.engine import SimulatedEngine
from penstock.errors import ConfigError, EngineDeadError, EngineError, UnsupportedError
from penstock.testing import EngineContract, answer, chat_request
from penstock.types import ChatRequest


async def started(**options):
    engine = SimulatedEngine(engine_kwargs=options)
    await engine.start()
    return engine


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine():
    engine = await started(output_tokens=40, max_num_seqs=16, max_model_len=4096)
    yield engine
    await engine.stop()


class TestContract(EngineContract):
    async def kill(self, engine):
        engine._die("killed")
        return True


async def texts(engine, count=40):
    async def one(number):
        try:
            return (await answer(engine, chat_request(f"row {number}", stream=False))).texts[0]
        except EngineError as error:
            return type(error).__name__

    return await asyncio.gather(*(one(number) for number in range(count)))


async def test_answers_depend_on_prompt_and_seed_alone():
    first, again = await texts(await started()), await texts(await started())
    assert first == again
    assert len(set(first)) > 30
    assert await texts(await started(seed=1)) != first


@pytest.mark.parametrize(
    "part", [{"type": "image_url", "image_url": {"url": "data:,"}}, {"type": "input_audio"}]
)
async def test_what_is_no_text_is_refused(engine, part):
    messages = [{"role": "user", "content": [{"type": "text", "text": "What is it?"}, part]}]
    with pytest.raises(
        UnsupportedError,
        match=rf"messages\[0\].content\[1\]: the simulated engine reads texts, no '{part['type']}'",
    ):
        await answer(engine, ChatRequest(messages))


async def test_faults_hit_the_same_rows_each_time():
    first = await texts(await started(error_rate=0.3))
    assert first == await texts(await started(error_rate=0.3))
    assert 4 <= first.count("EngineError") <= 20


async def test_a_hanging_row_holds_its_slot_and_no_other():
    engine = await started(hang_rate=1.0, max_num_seqs=2)
    task = asyncio.create_task(answer(engine, chat_request("a")))
    for _ in range(20):
        await asyncio.sleep(0)
    assert engine.running == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert engine.running == 0


async def test_the_engine_dies_as_often_as_it_was_told():
    engine = await started(die_after=5, die_times=1)
    results = await texts(engine, 10)
    assert results.count("EngineDeadError") == 5
    await engine.start()
    assert "EngineDeadError" not in await texts(engine, 10)


async def test_time_passes_in_steps_that_slow_with_the_batch():
    clock = asyncio.get_running_loop().time
    engine = await started(
        time_per_token_ms=2, time_to_first_token_ms=10, batch_slowdown=0.0, output_tokens=10
    )
    begin = clock()
    await answer(engine, chat_request("a"))
    alone = clock() - begin
    assert alone >= 0.010 + 10 * 0.002 * 0.9  # a lower bound holds on any machine


async def test_before_start_and_after_stop_it_is_dead():
    engine = SimulatedEngine()
    with pytest.raises(EngineDeadError):
        await answer(engine, chat_request("a"))


@pytest.mark.parametrize(
    ("options", "field", "hint"),
    [
        ({"time_per_tokn_ms": 1}, "engine_kwargs.time_per_tokn_ms", "time_per_token_ms"),
        ({"max_num_seqs": 0}, "engine_kwargs.max_num_seqs", "at least 1"),
        ({"error_rate": 2}, "engine_kwargs.error_rate", "at most 1"),
        ({"seed": "x"}, "engine_kwargs.seed", "an integer"),
    ],
)
def test_wrong_options_name_field_and_rule(options, field, hint):
    with pytest.raises(ConfigError) as caught:
        SimulatedEngine(engine_kwargs=options)
    assert caught.value.field == field
    assert hint in str(caught.value)


def test_json_follows_references_within_the_schema():
    item = {"type": "object", "properties": {"sure": {"type": "boolean"}}}
    schema = {"type": "array", "items": {"$ref": "#/$defs/item"}, "$defs": {"item": item}}
    (value,) = instance(schema, seeded(0, "test"))
    assert isinstance(value["sure"], bool)


async def test_a_prompt_with_an_image_has_no_ids(engine):
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
    request = ChatRequest([{"role": "user", "content": [image]}])
    with pytest.raises(UnsupportedError, match=r"messages\[0\].content"):
        await engine.prompt_ids(request)
