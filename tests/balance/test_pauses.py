import asyncio
import logging

import pytest

from penstock.balance import pauses
from penstock.balance.limiter import Limiter, Limits
from penstock.balance.pauses import Pauses, job_pauses, note_pause, span


@pytest.fixture(autouse=True)
def nothing_reported(monkeypatch):
    monkeypatch.setattr(pauses, "_silent_until", {})


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        *(
            (5, "5 s"),
            (59.4, "59 s"),
            (60, "1 min"),
            (90, "1 min 30 s"),
            (3600, "1 h"),
            (5400, "1 h 30 min"),
        ),
        *((86400, "24 h"), (90000, "25 h"), (3 * 86400, "3 d"), (365 * 86400.0, "365 d")),
    ],
)
def test_spans(seconds, shown):
    assert span(seconds) == shown


def test_a_pause_is_told_once_a_minute_for_each_server(caplog):
    now = 0.0
    with caplog.at_level(logging.WARNING):
        for server in ("a", "a", "b"):
            note_pause(server, 3600, is_kept=False, clock=lambda: now)
        now = 61.0
        note_pause("a", 30, clock=lambda: now)
        note_pause("c", 30, is_named=False, clock=lambda: now)
        note_pause("d", 1, clock=lambda: now)  # not worth it
    assert [record.getMessage() for record in caplog.records] == [
        "a asks for a pause of 1 h: the requests that it refuses so are given up",
        "b asks for a pause of 1 h: the requests that it refuses so are given up",
        "a asks for a pause of 30 s: nothing is sent there until then",
        "c refuses requests for load and is left alone for 30 s: nothing is sent there until then",
    ]


def test_a_job_counts_its_own():
    mine = Pauses()
    note_pause("a", 10)
    token = job_pauses.set(mine)
    note_pause("a", 10)
    note_pause("b", 7200, is_kept=False)
    job_pauses.reset(token)
    note_pause("a", 10)
    assert (mine.count, mine.given_up, mine.longest_s, mine.server) == (2, 1, 7200, "b")
    assert mine.is_now


async def test_a_limiter_keeps_a_pause_within_its_patience_and_no_longer_one():
    limiter = Limiter(Limits(concurrency=4, longest_pause_s=60), server="there", clock=lambda: 0.0)
    limiter.release(await limiter.acquire(), "throttled", 61)
    assert limiter.try_acquire() is not None
    limiter.release(2, "throttled", 60)
    assert limiter.try_acquire() is None


async def test_what_is_late_while_others_are_answered_narrows_nothing():
    limiter = Limiter(Limits(concurrency=8), clock=lambda: 0.0)
    late, answered = await limiter.acquire(), await limiter.acquire()
    limiter.release(answered, "answered")
    limiter.release(late, "late")
    assert limiter.window == 8
    limiter.release(await limiter.acquire(), "late")
    assert limiter.window == 4
    assert limiter.try_acquire() is not None  # it is narrower, and nobody is held
    limiter.proven()
    assert limiter.window == 8


async def test_a_proven_server_lets_the_waiting_go():
    limiter = Limiter(Limits(concurrency=2), clock=lambda: 0.0)
    tickets = [await limiter.acquire(), await limiter.acquire()]
    limiter.release(tickets[0], "late")
    waiting = asyncio.create_task(limiter.acquire())
    await asyncio.sleep(0)
    assert not waiting.done()
    limiter.proven()
    assert await waiting
