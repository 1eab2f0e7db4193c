"""Beam searches in the worker, in this process: what they are held to, and what is found."""

import asyncio
import json
from importlib import import_module
from itertools import islice

import pytest

from penstock import demo
from penstock.engines.beams import Beams
from penstock.engines.openvino import OpenVINOEngine
from penstock.engines.openvino.options import OpenVINOOptions
from penstock.engines.process import Submit
from penstock.engines.token_engine import GenerateRequest
from penstock.errors import UnsupportedError
from penstock.testing import answer, chat_request
from penstock.types import CompletionRequest, Sampling

TEXT = "The Solara 77 Pro (order 4711) arrived broken"
SEARCH = {"use_beam_search": True, "return_token_ids": True}


def search(number, width, tokens=20, **sampling):
    return Submit(
        number,
        f"{TEXT}{'!' * number}",
        Sampling(max_tokens=tokens, ignore_eos=True, **sampling),
        None,
        True,
        False,
        beams=Beams(width, width),
    )


def answered(generation, submits, abort=()):
    deltas, failures = [], generation.submit(submits)
    for step in range(5000):
        if not generation.busy:
            break
        for number in abort if step == 2 else ():
            generation.abort(number)
        made, failed = generation.step()
        deltas += [(number, delta.index, delta.text) for number, delta in made]
        failures += failed
    return deltas, failures


@pytest.fixture(scope="module", params=[True, False], ids=["cached", "uncached"])
def generation(request):
    from penstock.engines.openvino.lanes.generation import Generation

    options = OpenVINOOptions(
        max_num_seqs=8,
        kv_cache_memory_bytes=1 << 20,
        inference_precision="f32",
        enable_prefix_caching=request.param,
    )
    return Generation(str(demo.model_path()), options, 2048)


@pytest.mark.slow
def test_all_beams_of_a_search_come_in_one_step(generation):
    deltas, failures = answered(generation, [search(1, 4), search(2, 3)])
    assert not failures
    assert [entry[:2] for entry in deltas if entry[0] == 1] == [(1, n) for n in range(4)]
    assert [entry[:2] for entry in deltas if entry[0] == 2] == [(2, n) for n in range(3)]


@pytest.mark.slow
def test_searches_that_are_given_up_leave_nothing(generation):
    alone, _ = answered(generation, [search(3, 4)])
    deltas, failures = answered(generation, [search(n, 4) for n in range(1, 9)], abort=[1, 2, 4])
    assert not failures
    assert {number for number, _, _ in deltas} == {3, 5, 6, 7, 8}
    assert [entry for entry in deltas if entry[0] == 3] == alone
    assert not generation.busy
    lane = generation._lanes[None]
    assert (lane.taken, lane.tainted) == (0, False)


@pytest.mark.slow
def test_many_searches_share_a_cache_that_holds_two(generation):
    alone = {n: answered(generation, [search(n, 4)])[0] for n in range(1, 7)}
    deltas, failures = answered(generation, [search(n, 4) for n in range(1, 7)])
    assert not failures
    assert sorted(deltas) == sorted(entry for one in alone.values() for entry in one)


@pytest.mark.slow
def test_a_search_that_never_fits_is_refused_with_the_way_out(generation):
    _, (slots, room) = answered(generation, [search(1, 9), search(2, 8, tokens=500)])
    assert "9 beams need as many slots, and max_num_seqs is 8" in slots.message
    assert "8 beams of up to 500 tokens may need" in room.message
    assert room.message.endswith("lower max_tokens or n, or raise kv_cache_memory_bytes")


@pytest.mark.parametrize(
    "option",
    [
        {"prompt_lookup": True},
        {"draft_model": "small"},
        {"cache_eviction": {}, "enable_prefix_caching": False},
    ],
)
async def test_an_option_that_leaves_no_room_for_a_search_is_named(option):
    engine = OpenVINOEngine("demo", engine_kwargs=option)
    single = Sampling(extra={"use_beam_search": True})
    with pytest.raises(UnsupportedError, match=f"does not go with {next(iter(option))}"):
        engine.continue_prompt(GenerateRequest(TEXT, single, beams=Beams(2, 2)))


@pytest.mark.slow
async def test_adapters_are_searched_too(tmp_path):
    adapters = {"german": str(demo.adapter_path("german"))}
    engine = OpenVINOEngine("demo", adapters=adapters, engine_kwargs={"deterministic": True})
    await engine.start()
    try:
        sampling = Sampling(max_tokens=60, extra={"use_beam_search": True})
        plain, german = await asyncio.gather(
            *(
                answer(engine, chat_request(TEXT, sampling, n=3, adapter=name))
                for name in (None, "german")
            )
        )
        greedy = Sampling(max_tokens=60, temperature=0.0)
        (one,) = (await answer(engine, chat_request(TEXT, greedy, adapter="german"))).texts.values()
        assert one in german.texts.values()
        assert one not in plain.texts.values()
    finally:
        await engine.stop()


def tickets(count):
    with open(demo.tickets_path(), encoding="utf-8") as lines:
        return [json.loads(line)["ticket"] for line in islice(lines, count)]


@pytest.mark.convert
@pytest.mark.filterwarnings("default")
async def test_the_best_beam_is_that_of_transformers():
    torch, transformers = import_module("torch"), import_module("transformers")
    torch.set_num_threads(1)
    path = demo.model_path("huggingface")
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    model = model.half().float().eval()  # as converted
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    end = tokenizer.eos_token_id
    engine = OpenVINOEngine("demo", engine_kwargs={"deterministic": True})
    await engine.start()
    equal = 0
    try:
        for number, ticket in enumerate(tickets(9)):
            text = tokenizer.apply_chat_template(
                [{"role": "user", "content": ticket}], tokenize=False, add_generation_prompt=True
            )
            ids = tokenizer(text, add_special_tokens=False).input_ids
            asked = {
                "length_penalty": [1.0, 0.0, 2.0][number % 3],
                "early_stopping": ["never", False, True][number % 3],
            }
            sampling = Sampling(max_tokens=80, extra={**SEARCH, **asked})
            found = await answer(engine, CompletionRequest(ids, sampling, n=4, stream=False))
            with torch.no_grad():
                expected = model.generate(
                    torch.tensor([ids]),
                    attention_mask=torch.ones(1, len(ids)),
                    num_beams=4,
                    num_return_sequences=4,
                    max_new_tokens=80,
                    do_sample=False,
                    eos_token_id=end,
                    pad_token_id=end,
                    **asked,
                )
            rows = [row[len(ids) :].tolist() for row in expected]
            rows = [row[: row.index(end) + 1] if end in row else row for row in rows]
            assert found.token_ids[0] == rows[0]
            equal += list(found.token_ids.values()) == rows
    finally:
        await engine.stop()
    assert equal >= 5  # the others are often nearly as likely as the next one
