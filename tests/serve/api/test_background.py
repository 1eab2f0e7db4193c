"""What a response in the background keeps of its events, and gives to those who follow it."""

from __future__ import annotations

import pytest

from penstock.errors import EngineError
from penstock.openai.framing import event
from penstock.openai.response_events import response_error_events
from penstock.serve.api.background import Run
from penstock.serve.store.responses import Turn

EVENTS = [event("response.x", {"sequence_number": number}) for number in range(4)]


@pytest.fixture
def run() -> Run:
    run = Run(Turn(id="resp_1", owner="", body={}, input=[]))
    run.receive({"type": "http.response.start", "status": 200})
    return run


def receive(run: Run, *events: bytes) -> None:
    run.receive({"type": "http.response.body", "body": b"".join(events), "more_body": True})


async def test_a_follower_that_reads_slowly_misses_no_event(run: Run) -> None:
    receive(run, EVENTS[0])
    parts = run.parts()
    seen = [await anext(parts)]
    receive(run, *EVENTS[1:])  # while the follower has the first one in its hands
    run.ended = True
    run.notify()
    seen += [part async for part in parts]
    assert b"".join(seen) == b"".join(EVENTS)


@pytest.mark.parametrize("after", [-1, 1])
async def test_the_error_that_breaks_a_stream_off_comes_to_all(run: Run, after: int) -> None:
    broken = response_error_events(EngineError("the replica is gone"))
    receive(run, *EVENTS, broken)
    run.ended = True
    given = b"".join([part async for part in run.parts(after)])
    assert given == b"".join(EVENTS[after + 1 :]) + broken
