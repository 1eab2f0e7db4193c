"""Steps that fail because of one request, in this process: the others are answered."""

import json
from typing import Any

import pytest

from penstock import demo
from penstock.engines.openvino.options import OpenVINOOptions
from penstock.engines.process import Failed, Submit
from penstock.errors import EngineError
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


@pytest.fixture
def fails(generation, monkeypatch):
    """Has the pipeline fail, and each that takes its place; gives the former one back."""

    def begin(after):
        lane = generation._lanes[None]
        load = generation._pipelines.base
        monkeypatch.setattr(
            generation._pipelines, "base", lambda: Fails(load(), lane, after), raising=False
        )
        lane.pipeline = Fails(lane.pipeline, lane, after)

    def end():
        monkeypatch.undo()
        lane = generation._lanes[None]
        lane.pipeline = lane.pipeline._pipeline

    return begin, end


@pytest.mark.parametrize("after", [0, 1])
@pytest.mark.parametrize("stream", [False, True])
def test_the_request_that_fails_a_step_fails_alone(generation, fails, after, stream):
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
    begin, end = fails
    begin(after if stream else 0)  # tokens of one that nobody watches are not counted
    texts, failures = answered(generation, submits(bad=2))
    end()
    assert [(failed.id, failed.kind) for failed in failures] == [(2, "invalid_request_error")]
    assert failures[0].message.endswith("it does not compute")
    assert {n: text for n, text in texts.items() if n != 2} == {
        n: text for n, text in expected.items() if n != 2
    }
    again, failures = answered(generation, submits())
    assert (again, failures) == (expected, [])


@pytest.mark.parametrize("structured", [None, StructuredOutput("grammar", 'root ::= "ab" [a-z]*')])
@pytest.mark.parametrize("stream", [False, True])
def test_what_was_read_of_a_request_goes_with_it(generation, fails, structured, stream):
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
    begin, end = fails
    begin(0)
    texts, failures = answered(generation, submits(bad=2))
    end()
    lost = {failed.id for failed in failures}
    assert 2 in lost
    if structured is None or not stream:  # others cannot begin a constrained text again
        assert lost == {2}
    assert {n: text for n, text in texts.items() if n not in lost} == {
        n: text for n, text in expected.items() if n not in lost
    }
    assert not generation.busy
    assert not generation._scoring._scored


class TestUnfinishedBlocks:
    """A prompt's last block that a step had no room for, when its request goes before the next."""

    WIDTH = 32

    @pytest.fixture
    def prompt(self, generation):
        with demo.tickets_path().open(encoding="utf-8") as lines:
            ticket = json.loads(lines.readline())["ticket"]
        text = f"<|im_start|>user\n{ticket}<|im_end|>\n<|im_start|>assistant\n"
        return generation.encoded(text, special_tokens=False, names=False).ids

    @pytest.fixture
    def narrow(self):
        """Steps in which a prompt has room for a few tokens, beside others that go on."""
        from penstock.engines.openvino.lanes.generation import Generation

        options = OpenVINOOptions(
            max_num_seqs=self.WIDTH,
            max_num_batched_tokens=self.WIDTH,
            kv_cache_memory_bytes=32 << 20,
            inference_precision="f32",
        )
        generation = Generation(str(demo.model_path()), options, 512)
        beside = Sampling(max_tokens=200, temperature=0, ignore_eos=True)
        others = [
            Submit(100 + n, [5 + n], beside, None, True, False) for n in range(self.WIDTH - 7)
        ]
        assert not generation.submit(others)
        generation.step()
        return generation

    def begin(self, generation, prompt, number):
        sampling = Sampling(max_tokens=40, temperature=0)
        assert not generation.submit([Submit(number, prompt, sampling, None, True, False)])

    def text(self, generation, number):
        text = ""
        while True:
            deltas, failures = generation.step()
            assert not [failed for failed in failures if failed.id == number]
            for delta in [delta for at, delta in deltas if at == number]:
                text += delta.text
                if delta.finish_reason:
                    return text

    def test_a_request_that_is_given_up_leaves_none(self, generation, narrow, prompt):
        self.begin(generation, prompt, 1)
        expected = self.text(generation, 1)
        self.begin(narrow, prompt, 1)
        narrow.step()
        narrow.abort(1)
        self.begin(narrow, prompt, 2)
        assert self.text(narrow, 2) == expected

    def test_nor_does_a_fault(self, generation, narrow, prompt):
        self.begin(generation, prompt, 1)
        expected = self.text(generation, 1)
        self.begin(narrow, prompt, 1)
        narrow.step()
        lane = narrow._lanes[None]
        lane.pipeline = FailsOnce(lane.pipeline)
        assert self.text(narrow, 1) == expected
        assert not isinstance(lane.pipeline, FailsOnce)


class FailsOnce:
    def __init__(self, pipeline):
        self._pipeline, self._failed = pipeline, False

    def __getattr__(self, name):
        return getattr(self._pipeline, name)

    def step(self):
        if not self._failed:
            self._failed = True
            raise RuntimeError("Check failed at model_runner.hpp:1:\nno memory")
        self._pipeline.step()


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_an_adapter_whose_answer_was_given_up_can_be_removed_at_once(generation, steps, capfd):
    generation.add_adapter("german", str(demo.adapter_path("german")))
    long = Sampling(max_tokens=400, temperature=0.0, ignore_eos=True)
    assert not generation.submit([Submit(1, "Hello.", long, "german", True, False)])
    for _ in range(steps):
        generation.step()
    with pytest.raises(EngineError, match="in use"):
        generation.remove_adapter("german")
    generation.abort(1)
    generation.remove_adapter("german")
    assert not generation.busy
    assert "leaked" not in "".join(capfd.readouterr())
    _, failures = answered(
        generation, [Submit(2, "Hello.", Sampling(max_tokens=3), None, True, False)]
    )
    assert not failures


@pytest.mark.parametrize("room", [1, 400])
def test_log_probabilities_and_biases_share_what_room_there_is(generation, monkeypatch, room):
    while (model := generation._logits.model()) is None:
        pass
    monkeypatch.setattr(model, "_room", room)
    kinds: list[dict[str, Any]] = [
        {"logprobs": 5, "logit_bias": ((5, 1.0),)},
        {"logprobs": 5},
        {"logprobs": 5, "prompt_logprobs": 1, "bad_words": ("late",)},
        {"prompt_logprobs": 1},
    ]
    submits = [
        Submit(
            number,
            "The parcel arrived",
            Sampling(temperature=0.0, max_tokens=6, ignore_eos=True, **kinds[number % 4]),
            None,
            number > 4,
            False,
        )
        for number in range(1, 9)
    ]
    texts, failures = answered(generation, submits)
    assert not failures
    assert set(texts) == set(range(1, 9))
    assert not generation.busy
