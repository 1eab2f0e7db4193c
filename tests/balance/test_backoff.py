import asyncio
import logging

import pytest

from penstock.balance import backoff
from penstock.balance.backoff import Pauses, Retry, job_pauses, note_pause, span, wait_after
from penstock.balance.limiter import Limiter, Limits
from penstock.errors import OverloadedError


@pytest.fixture(autouse=True)
def nothing_reported(monkeypatch):
    monkeypatch.setattr(backoff, "_silent_until", {})


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        *(
            (5, "5 s"),
            (0, "0 s"),
            (59.44, "59.4 s"),
            (59.97, "1 min"),
            (60, "1 min"),
            (90, "1 min 30 s"),
            (3599.6, "1 h"),
            (3600, "1 h"),
            (5400, "1 h 30 min"),
        ),
        *((86399.9, "24 h"), (90000, "25 h"), (3 * 86400, "3 d"), (365 * 86400.0, "365 d")),
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


AT_ONCE = Retry(most=3, first_s=0, longest_s=0)


class Failing:
    """Fails so many times."""

    def __init__(self, times: int) -> None:
        self.left = times
        self.attempts = 0

    async def __call__(self) -> str:
        self.attempts += 1
        if self.left:
            self.left -= 1
            raise ValueError(self.attempts)
        return "done"


def test_it_doubles_up_to_the_longest_with_jitter():
    for failures, whole in ((1, 1), (2, 2), (3, 4), (4, 8), (5000, 8)):
        waits = {wait_after(ValueError(), failures, first=1, longest=8) for _ in range(20)}
        assert whole / 2 <= min(waits) <= max(waits) <= whole
        assert len(waits) > 1


def test_no_first_is_no_wait():
    assert wait_after(ValueError(), 3, first=0, longest=8) == 0


async def test_what_passes_is_tried_again():
    failing = Failing(2)
    assert await AT_ONCE.run(failing, lambda failure: True) == "done"
    assert failing.attempts == 3


async def test_the_last_failure_is_raised():
    failing = Failing(9)
    with pytest.raises(ValueError, match="3"):
        await AT_ONCE.run(failing, lambda failure: True)


async def test_what_does_not_pass_is_tried_once():
    failing = Failing(9)
    with pytest.raises(ValueError, match="1"):
        await AT_ONCE.run(failing, lambda failure: False)


@pytest.mark.parametrize(
    ("failure", "attempts", "least", "most"),
    [
        (OverloadedError("busy", 20.0), 1, 20.0, 20.0),
        (OverloadedError("busy", 0.0), 1, 0.05, 0.1),
        (ValueError(), 1, 0.5, 1.0),
        (ValueError(), 2, 1.0, 2.0),
    ],
)
def test_a_pause_that_is_named_is_kept(failure, attempts, least, most):
    pause = Retry(most=3, first_s=1, longest_s=8).pause(failure, attempts)
    assert pause is not None
    assert least <= pause <= most


def test_a_pause_beyond_the_patience_ends_it_and_so_does_the_last_attempt():
    retry = Retry(most=3, first_s=1, longest_s=8)
    assert retry.pause(OverloadedError("busy", 61.0), 1) is None
    assert retry.pause(ValueError(), 3) is None
    failure = OverloadedError("busy", 1.0)
    failure.given_up = True
    assert retry.pause(failure, 1) is None
