"""Steps that fail because of one request, in this process: the others are answered."""

import pytest

from penstock import demo
from penstock.engines.openvino.options import OpenVINOOptions
from penstock.engines.process import Failed, Submit
from penstock.types import Sampling, StructuredOutput

pytestmark = pytest.mark.slow


class Fails:
    """A pipeline whose steps fail while a request for nine tokens runs in it that has so many
    already.
    """

    def __init__(self, pipeline, lane, after):
        self._pipeline, self._lane, self._after = pipeline, lane, after

    def __getattr__(self, name):
        return getattr(self._pipeline, name)

    def step(self):
        import openvino_genai as genai

        for request in self._lane.active.values():
            bad = (
                request.sampling.max_tokens == 9
                and request.handle.get_status() == genai.GenerationStatus.RUNNING
            )
            if bad and len(request.ids) >= self._after:
                raise RuntimeError("Check failed at sampler.cpp:1:\nit does not compute")
        self._pipeline.step()


def answered(generation, submits):
    texts: dict[int, str] = {}
    failures: list[Failed] = []
    failures += generation.submit(submits)
    for _ in range(5000):
        if not generation.busy:
            break
        deltas, failed = generation.step()
        failures += failed
        for number, delta in deltas:
            texts[number] = texts.get(number, "") + delta.text
    return texts, failures


@pytest.fixture(scope="module")
def generation():
    from penstock.engines.openvino.lanes.generation import Generation

    options = OpenVINOOptions(
        max_num_seqs=8, kv_cache_memory_bytes=32 << 20, inference_precision="f32"
    )
    return Generation(str(demo.model_path()), options, 2048)


@pytest.mark.parametrize("after", [0, 1])
@pytest.mark.parametrize("stream", [False, True])
def test_the_request_that_fails_a_step_fails_alone(generation, after, stream):
    def submits(bad=None):
        samplings = [
            Sampling(max_tokens=9 if number == bad else 12, temperature=0.0) for number in range(6)
        ]
        return [
            Submit(
                number, f"Repeat the text. The pump {number} leaks.", sampling, None, stream, False
            )
            for number, sampling in enumerate(samplings)
        ]

    expected, failures = answered(generation, submits())
    assert not failures
    lane = generation._lanes[None]
    whole = lane.pipeline
    # Tokens of one that nobody watches are not counted.
    lane.pipeline = Fails(whole, lane, after if stream else 0)
    texts, failures = answered(generation, submits(bad=2))
    lane.pipeline = whole
    assert [(failed.id, failed.kind) for failed in failures] == [(2, "invalid_request_error")]
    assert failures[0].message.endswith("it does not compute")
    assert {n: text for n, text in texts.items() if n != 2} == {
        n: text for n, text in expected.items() if n != 2
    }
    again, failures = answered(generation, submits())
    assert (again, failures) == (expected, [])


@pytest.mark.parametrize("structured", [None, StructuredOutput("grammar", 'root ::= "ab" [a-z]*')])
@pytest.mark.parametrize("stream", [False, True])
def test_what_was_read_of_a_request_goes_with_it(generation, structured, stream):
    """Requests with log probabilities of several tokens, one of which fails the others' step."""

    def submits(bad=None):
        return [
            Submit(
                number,
                f"Repeat the text. The pump {number} leaks.",
                Sampling(
                    max_tokens=9 if number == bad else 12,
                    temperature=0.0,
                    logprobs=3,
                    structured=structured,
                ),
                None,
                stream,
                False,
            )
            for number in range(6)
        ]

    expected, failures = answered(generation, submits())
    assert not failures
    lane = generation._lanes[None]
    whole = lane.pipeline
    lane.pipeline = Fails(whole, lane, 0)
    texts, failures = answered(generation, submits(bad=2))
    lane.pipeline = whole
    lost = {failed.id for failed in failures}
    assert 2 in lost
    if structured is None or not stream:  # others cannot begin a constrained text again
        assert lost == {2}
    assert {n: text for n, text in texts.items() if n not in lost} == {
        n: text for n, text in expected.items() if n not in lost
    }
    assert not generation.busy
    assert not generation._scoring._scored
