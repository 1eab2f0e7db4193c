"""Requests with values at and beyond every limit: each works or is refused, and the engine's
process stays the same.
"""

import asyncio
import random

import msgspec
import pytest
import pytest_asyncio

from penstock.engines.openvino.engine import OpenVINOEngine
from penstock.errors import RequestError
from penstock.testing import answer, chat_request
from penstock.types import CompletionRequest, Sampling

NAN, INF = float("nan"), float("inf")
TINY = [1e-320, 5e-324, 1e-46, 1e-45, 1e-40, 1e-38, 1.2e-38, 1e-30, 1e-7]
NUMBERS = [
    0.0,
    -0.0,
    0,
    1,
    1.0,
    2.0,
    -2.0,
    0.5,
    *TINY,
    *(-x for x in TINY),
    0.99999999,
    1.00000001,
    1e38,
    3.5e38,
    1e308,
]
ODD = [NAN, INF, -INF, True, "1", None, [1], 2**64, 10**400]
WHOLE = [
    0,
    1,
    -1,
    -2,
    2,
    64,
    127,
    2**15,
    2**31 - 1,
    2**31,
    2**32,
    2**53,
    2**63 - 1,
    -(2**63),
    2**63,
    2**64,
    10**5000,
]
VALUES: dict[str, list] = {
    **dict.fromkeys(
        ("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty"), NUMBERS + ODD
    ),
    "repetition_penalty": NUMBERS + ODD,
    **{
        name: [*WHOLE, 1.5, True, "1"]
        for name in ("max_tokens", "min_tokens", "top_k", "seed", "logprobs")
    },
    "stop": [
        (),
        ("",),
        ("a",),
        ("\0",),
        ("\ud800",),
        ("x" * 5000,),
        tuple(str(n) for n in range(100_000)),
        (1,),
        ("é", "日"),
    ],
    "stop_token_ids": [
        (),
        (0,),
        (-1,),
        (5, 5),
        (1023,),
        (1024,),
        (2**31,),
        (2**64,),
        (True,),
        ("1",),
        tuple(range(900)),
    ],
    "ignore_eos": [True, False],
}
PROMPTS: list = [
    *("", " ", "\0", "Hi", "\ud800", "x" * 100_000, "<|im_start|>", "🙂"),
    *(
        [],
        [5],
        [-1],
        [2**40],
        [2**70],
        [True, 5],
        [1.0],
        ["5"],
        [1023],
        [1024],
        [5] * 511,
        [5] * 512,
        [5] * 2047,
        [5] * 2048,
    ),
]
NAMED = [
    Sampling(temperature=1, min_p=1, max_tokens=4),
    Sampling(temperature=1e-320, max_tokens=4),
    Sampling(temperature=1, top_p=1e-320, max_tokens=4),
    Sampling(temperature=1, repetition_penalty=1e-46, max_tokens=4),
    Sampling(temperature=0, repetition_penalty=1e-46, max_tokens=4),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine():
    engine = OpenVINOEngine(
        "demo", engine_kwargs={"max_num_seqs": 8, "kv_cache_memory_bytes": 32 << 20}
    )
    await engine.start()
    yield engine
    await engine.stop()


def drawn(rng):
    """A request whose sampling has one to four values of the above."""
    given = {name: rng.choice(VALUES[name]) for name in rng.sample(list(VALUES), rng.randint(1, 4))}
    given.setdefault("max_tokens", 3)
    if rng.random() < 0.5:
        given.setdefault("temperature", 1.0)
    sampling = Sampling(**given)
    stream = rng.random() < 0.5
    n = rng.choice([1] * 8 + [0, 2, -1, 129, 2**70])
    if rng.random() < 0.7:
        request = chat_request(
            rng.choice(["Hi", "Ticket: it does not work"]), sampling, stream=stream
        )
        return msgspec.structs.replace(request, n=n)
    return CompletionRequest(rng.choice(PROMPTS), sampling, n, stream=stream)


async def outcome(engine, request):
    """ "ok", or the status of the refusal. Whatever else is raised fails the test."""
    try:
        async with asyncio.timeout(60):
            await answer(engine, request)
        return "ok"
    except RequestError as error:
        return error.status


async def fuzz(engine, seed, count):
    rng = random.Random(seed)
    pid, expected = engine._process.pid, (await answer(engine, chat_request("Hello"))).texts
    seen: set = set()
    for _ in range(count // 8):
        seen.update(await asyncio.gather(*(outcome(engine, drawn(rng)) for _ in range(8))))
        assert engine._process.pid == pid
    assert (await answer(engine, chat_request("Hello"))).texts == expected
    assert seen == {"ok", 400}


@pytest.mark.asyncio(loop_scope="module")
async def test_named_values_that_once_ended_the_process(engine):
    pid = engine._process.pid
    results = [await outcome(engine, chat_request("Hi", sampling)) for sampling in NAMED]
    assert results == ["ok", 400, 400, 400, 400]
    assert engine._process.pid == pid


@pytest.mark.asyncio(loop_scope="module")
async def test_empty_prompts_that_arrive_together(engine):
    pid = engine._process.pid
    requests = [
        CompletionRequest(text, Sampling(temperature=0, max_tokens=3))
        for text in ("", "", "Hi", "")
    ]
    assert await asyncio.gather(*(outcome(engine, request) for request in requests)) == [
        400,
        400,
        "ok",
        400,
    ]
    assert engine._process.pid == pid


@pytest.mark.asyncio(loop_scope="module")
async def test_some_drawn_requests(engine):
    await fuzz(engine, seed=14, count=160)


@pytest.mark.nightly
@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("seed", range(4))
async def test_many_drawn_requests(engine, seed):
    await fuzz(engine, seed, count=2000)
