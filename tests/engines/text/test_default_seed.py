"""Seeds for requests that sample without one."""

import msgspec
import pytest

from penstock.engines.simulated.engine import SimulatedEngine
from penstock.engines.text.default_seed import with_seed
from penstock.types import ChatRequest, CompletionRequest, Sampling

ASK = ChatRequest([{"role": "user", "content": "Name a river."}], Sampling(temperature=0.8))


def seed(request, **changes):
    return with_seed(msgspec.structs.replace(request, **changes)).sampling.seed


def test_the_same_request_has_the_same_seed_and_another_one_another():
    same = [seed(ASK), seed(ASK), seed(ASK, request_id="x", stream=False, n=3)]
    other = [
        seed(ASK, messages=[{"role": "user", "content": "Name a lake."}]),
        seed(ASK, adapter="short"),
        seed(CompletionRequest("Name a river.", Sampling())),
        seed(CompletionRequest([1, 2, 3], Sampling())),
    ]
    assert len(set(same)) == 1
    assert len({*same, *other}) == 5
    assert all(0 <= value < 1 << 31 for value in (*same, *other))


@pytest.mark.parametrize(
    "sampling", [Sampling(temperature=0), Sampling(seed=5), Sampling(temperature=0, seed=5)]
)
def test_one_that_needs_no_seed_stays_as_it_is(sampling):
    request = msgspec.structs.replace(ASK, sampling=sampling)
    assert with_seed(request) is request


@pytest.mark.parametrize("n", [1, 3])
async def test_a_deterministic_engine_samples_the_same_again(n):
    answers = []
    for deterministic in (True, True, False):
        engine = SimulatedEngine(
            engine_kwargs={"deterministic": deterministic, "output_tokens": 64}
        )
        await engine.start()
        found: dict[int, str] = {}
        async for delta in engine.chat(msgspec.structs.replace(ASK, n=n)):
            found[delta.index] = found.get(delta.index, "") + delta.text
        answers.append(found)
        await engine.stop()
    assert answers[0] == answers[1] != answers[2]
    assert len(set(answers[0].values())) == n
