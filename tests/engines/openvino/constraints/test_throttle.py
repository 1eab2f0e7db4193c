import asyncio
import os
import signal

import pytest

from penstock.engines.openvino.constraints import throttle
from penstock.engines.openvino.constraints.throttle import Allowance, Throttle


@pytest.fixture
def sent(monkeypatch):
    """The signals that are sent."""
    signals = []
    monkeypatch.setattr(os, "kill", lambda pid, number: signals.append((pid, number)))
    monkeypatch.setattr(throttle, "PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(throttle, "_CAN_STOP", True)
    return signals


async def turns(sent, count):
    while len(sent) < count:  # noqa: ASYNC110 - nothing tells
        await asyncio.sleep(0)


async def test_while_others_are_served_a_process_runs_in_turns(sent):
    held = Throttle(lambda: 7, lambda: True)
    held.begin(0.0)
    await turns(sent, 5)
    held.end()
    assert {pid for pid, _ in sent} == {7}
    assert [number for _, number in sent[:4]] == [signal.SIGSTOP, signal.SIGCONT] * 2
    assert sent[-1][1] == signal.SIGCONT
    so_far = len(sent)
    await asyncio.sleep(0)
    assert len(sent) == so_far


async def test_where_nobody_is_served_it_is_never_stopped(sent):
    asked: list[int] = []

    def serving():
        asked.append(1)
        return False

    held = Throttle(lambda: 7, serving)
    held.begin(0.0)
    await turns(asked, 3)
    held.end()
    assert not sent


async def test_a_process_that_ended_gets_no_signal(sent):
    pids: list[int | None] = [7]
    held = Throttle(lambda: pids[0], lambda: True)
    held.begin(0.0)
    await turns(sent, 1)
    pids[0] = None
    held.end()
    assert sent == [(7, signal.SIGSTOP)]


def test_an_allowance_comes_back_with_time_and_its_debt_is_bounded():
    allowance = Allowance(share=0.1, most=2.0)
    assert allowance.left(100.0) == 2.0
    allowance.use(3.0, 100.0)
    assert allowance.left(105.0) == pytest.approx(-0.5)
    assert allowance.left(110.0) == pytest.approx(0.0)
    allowance.use(100.0, 110.0)
    assert allowance.left(110.0) == -4.0
    assert allowance.left(1_000.0) == 2.0
