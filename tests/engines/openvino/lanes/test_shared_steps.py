"""Batch requests leave the pipeline for others and go on later, in this process."""

from __future__ import annotations

from itertools import cycle
from typing import Any

import pytest

from penstock import demo
from penstock.engines.openvino.options import OpenVINOOptions
from penstock.engines.process import Call, Submit
from penstock.engines.sharing import Decision
from penstock.types import Sampling, StructuredOutput

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def generation() -> Any:
    from penstock.engines.openvino.lanes.generation import Generation

    options = OpenVINOOptions(
        max_num_seqs=8,
        kv_cache_memory_bytes=32 << 20,
        inference_precision="f32",
        kv_cache_precision="f32",
        deterministic=True,
    )
    return Generation(str(demo.model_path()), options, 2048)


def submit(number: int, *, batch: bool, stream: bool = False, **sampling: Any) -> Submit:
    given = Sampling(**{"max_tokens": 24, "temperature": 0.0, **sampling})
    prompt = f"Repeat the text. The pump {number} leaks since the third of May, said Ann."
    return Submit(number, prompt, given, None, stream, False, batch=batch)


def answers(generation: Any, submits: list[Submit]) -> dict[int, tuple[str, Any]]:
    texts: dict[int, str] = {}
    usages = {}
    assert not generation.submit(submits)
    for _ in range(3000):
        if not generation.busy:
            break
        deltas, failed = generation.step()
        assert not failed
        for number, delta in deltas:
            texts[number] = texts.get(number, "") + delta.text
            if delta.finish_reason is not None:
                usages[number] = (delta.usage.prompt_tokens, delta.usage.completion_tokens)
    assert not generation.busy
    return {number: (text, usages[number]) for number, text in texts.items()}


def scheduled(generation: Any, monkeypatch: pytest.MonkeyPatch, rows: list[int]) -> Any:
    """Let the controller decide on these numbers of rows, again and again."""
    controller = generation._shared.controller
    turns = cycle(rows)
    monkeypatch.setattr(controller, "decide", lambda *_: Decision(next(turns), 1 << 30))
    return controller


@pytest.mark.parametrize(
    "sampling",
    [
        {},
        {"stop": ("May",)},
        {"temperature": 1.0, "seed": 5},
        {"presence_penalty": 0.5},
        {"structured": StructuredOutput("grammar", 'root ::= "ab" [a-z]{4,9}')},
        {"logprobs": 0},
    ],
    ids=lambda sampling: next(iter(sampling), "greedy"),
)
@pytest.mark.parametrize("stream", [False, True])
def test_rows_that_leave_and_go_on_have_the_same_answers(
    generation: Any, monkeypatch: pytest.MonkeyPatch, sampling: dict[str, Any], stream: bool
) -> None:
    def submits() -> list[Submit]:
        return [submit(n, batch=True, stream=stream, **sampling) for n in range(6)]

    expected = answers(generation, submits())
    controller = scheduled(generation, monkeypatch, [6, 6, 6, 2, 2, 0, 6, 6, 1, 6, 6, 6, 6, 3])
    before = controller.evictions
    assert answers(generation, submits()) == expected
    goes_on = {"seed", "presence_penalty", "structured"}.isdisjoint(sampling)
    # What was seen of an answer that would have to begin anew binds it to its slot.
    assert (controller.evictions > before) == (goes_on or not stream)


def test_online_requests_pass_batch_rows_that_fill_all_slots(generation: Any) -> None:
    controller = generation._shared.controller
    before = controller.evictions
    assert not generation.submit([submit(n, batch=True, max_tokens=64) for n in range(20)])
    for _ in range(10):
        generation.step()
    lane = generation._lanes[None]
    assert lane.batch_active == 8
    assert not generation.submit([submit(n, batch=False, max_tokens=8) for n in range(100, 104)])
    generation.step()
    assert all(number in lane.active for number in range(100, 104))
    assert len(lane.active) <= 8
    assert controller.evictions >= before + 4
    done = set()
    for _ in range(3000):
        if not generation.busy:
            break
        deltas, failed = generation.step()
        assert not failed
        assert len(lane.active) <= 8
        done |= {number for number, delta in deltas if delta.finish_reason is not None}
    assert done == {*range(20), *range(100, 104)}


def test_a_batch_request_can_be_given_up_wherever_it_is(generation: Any) -> None:
    assert not generation.submit([submit(n, batch=True, max_tokens=64) for n in range(12)])
    generation.step()
    for number in (0, 11):
        generation.abort(number)
    lane = generation._lanes[None]
    assert lane.batch_active == len([r for r in lane.active.values() if r.batch])
    for number in range(1, 11):
        generation.abort(number)
    generation.step()
    assert not generation.busy
    assert (lane.batch_active, len(lane.batch_waiting)) == (0, 0)


def test_what_was_decided_is_among_the_metrics(generation: Any) -> None:
    assert not generation.submit([submit(0, batch=True)])
    generation.step()
    metrics = generation.metrics()
    assert metrics["batch_rows_allowed"] == 1
    assert metrics["online_first_token_p95_seconds"] >= 0
    generation.abort(0)


def test_rows_that_wait_hold_no_decision_up(
    generation: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    controller = scheduled(generation, monkeypatch, [0])
    monkeypatch.setattr(controller, "lengths", lambda rows: 5.0)
    assert not generation.submit([submit(0, batch=True)])
    generation.step()
    assert generation.pause == 5.0
    generation.begin_decision(Call(1, "decide", []))
    assert generation.pause == 0.0
    generation.abort(1)
    assert generation.pause == 5.0
    generation.abort(0)
