"""What `deterministic` makes of the embedded engine's options, and that it keeps its word."""

import asyncio
import random
from contextlib import asynccontextmanager

import pytest

from penstock.engines.openvino.engine import OpenVINOEngine
from penstock.engines.openvino.pipeline import sequences_wanted
from penstock.errors import ConfigError
from penstock.types import CompletionRequest, Sampling


def test_it_takes_full_precision():
    options = OpenVINOEngine(
        "demo", engine_kwargs={"deterministic": True, "num_threads": 3}
    ).options
    assert (options.inference_precision, options.kv_cache_precision) == ("f32", "f32")
    assert options.device_properties() == {
        "INFERENCE_NUM_THREADS": 3,
        "INFERENCE_PRECISION_HINT": "f32",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
    }


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"inference_precision": "bf16"}, "inference_precision"),
        ({"kv_cache_precision": "u8"}, "kv_cache_precision"),
        ({"device": "GPU"}, "device"),
        ({"prompt_lookup": True}, "prompt_lookup"),
        ({"draft_model": "small"}, "draft_model"),
        (
            {"properties": {"INFERENCE_PRECISION_HINT": "bf16"}},
            "properties.INFERENCE_PRECISION_HINT",
        ),
        ({"properties": {"kv_cache_precision": "u8"}}, "properties.kv_cache_precision"),
        ({"properties": {"VALUE_CACHE_PRECISION": "u4"}}, "properties.VALUE_CACHE_PRECISION"),
        (
            {"properties": {"DYNAMIC_QUANTIZATION_GROUP_SIZE": 32}},
            "properties.DYNAMIC_QUANTIZATION_GROUP_SIZE",
        ),
    ],
)
def test_what_does_not_go_together_with_it_is_refused(options, named):
    with pytest.raises(
        ConfigError, match=f"engine_kwargs.{named}: does not go together with deterministic"
    ):
        OpenVINOEngine("demo", engine_kwargs={"deterministic": True, **options})
    OpenVINOEngine("demo", engine_kwargs=options)


@pytest.mark.parametrize(
    "options",
    [
        {"inference_precision": "f32", "kv_cache_precision": "f32", "device": "CPU"},
        {
            "properties": {
                "INFERENCE_PRECISION_HINT": "F32",
                "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
                "CACHE_DIR": "c",
            }
        },
    ],
)
def test_what_says_the_same_is_taken(options):
    OpenVINOEngine("demo", engine_kwargs={"deterministic": True, **options})


@pytest.mark.parametrize(("threads", "wanted"), [(1, 2), (2, 2), (5, 5), (99, 16)])
def test_a_step_has_as_many_sequences_as_threads(threads, wanted):
    assert sequences_wanted(True, threads) == wanted
    assert sequences_wanted(False, threads) == 0


PROMPTS = [
    f"{'The cable of my Solara 77 broke again. ' * (number % 9)}Order {number}"
    for number in range(24)
]
TOKENS = 16


@asynccontextmanager
async def running(**options):
    engine = OpenVINOEngine(
        "demo", engine_kwargs={"deterministic": True, "kv_cache_memory_bytes": 64 << 20, **options}
    )
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


async def answer(engine, number, temperature):
    sampling = Sampling(max_tokens=TOKENS, temperature=temperature, logprobs=0, ignore_eos=True)
    ids, logprobs, text = (), (), ""
    async for delta in engine.completions(
        CompletionRequest(PROMPTS[number], sampling, stream=number % 2 == 0)
    ):
        ids, text = ids + delta.token_ids, text + delta.text
        logprobs += tuple(each.logprob for each in delta.logprobs or ())
    return ids, text, logprobs


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize("cache", [True, False])
async def test_answers_depend_on_their_request_alone(temperature, cache):
    async with running(enable_prefix_caching=cache) as engine:
        alone = [await answer(engine, number, temperature) for number in range(len(PROMPTS))]
    async with running(
        enable_prefix_caching=not cache, max_num_batched_tokens=64, max_num_seqs=9
    ) as engine:
        for seed in range(2):
            order = random.Random(seed).sample(range(len(PROMPTS)), len(PROMPTS))
            together = await asyncio.gather(
                *(answer(engine, number, temperature) for number in order)
            )
            for number, (ids, text, logprobs) in zip(order, together, strict=True):
                assert (ids, text) == alone[number][:2]
                assert logprobs == pytest.approx(alone[number][2], abs=1e-4)


@pytest.mark.slow
async def test_an_idle_engine_keeps_nobody_company(capfd):
    async with running() as engine:
        await answer(engine, 0, 0.0)
        await engine.reset_prefix_cache()  # which is refused while anything runs
        assert await answer(engine, 1, 0.0) == await answer(engine, 1, 0.0)
    assert capfd.readouterr().err == ""  # the library complains of sequences that are left behind
