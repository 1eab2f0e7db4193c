import asyncio
import gc
import heapq

import pytest

from penstock.balance.backoff import is_served
from penstock.balance.limiter import Limiter, Limits, Pace, shared_limiter
from penstock.errors import UpstreamError

real_sleep = asyncio.sleep


class Clock:
    """Time that passes only in sleeps, which then take none."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        self.slept = []
        monkeypatch.setattr("penstock.balance.limiter.asyncio.sleep", self.sleep)

    def __call__(self):
        return self.now

    async def sleep(self, seconds):
        self.slept.append(seconds)
        self.now += seconds
        await real_sleep(0)


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def limiter(clock=lambda: 0.0, **limits):
    return Limiter(Limits(**limits), clock=clock, jitter=lambda: 0.0)


async def turns(count=5):
    for _ in range(count):
        await real_sleep(0)


def reserved(pace, amount, now):
    """How long an amount has to wait that goes as soon as it may."""
    wait = max(pace.free_at() - now, 0.0)
    pace.take(amount, now)
    return wait


def test_a_pace_spaces_amounts_evenly():
    pace = Pace(10)
    assert [round(reserved(pace, 1, 5.0), 6) for _ in range(4)] == [0, 0.1, 0.2, 0.3]
    assert reserved(pace, 1, 9.0) == 0  # idle time is not saved up
    assert round(reserved(pace, 1, 9.0), 6) == 0.1


def test_a_pace_takes_amounts_beyond_its_rate_and_corrections():
    pace = Pace(10)
    assert reserved(pace, 50, 0.0) == 0
    assert reserved(pace, 1, 0.0) == 5
    pace.charge(-20)
    assert round(reserved(pace, 1, 0.0), 6) == 3.1


async def test_a_place_at_once_only_where_there_is_nothing_to_wait_for():
    limit = limiter(concurrency=2)
    first, second = limit.try_acquire(), limit.try_acquire()
    assert first is not None
    assert second is not None
    assert limit.try_acquire() is None
    waiting = asyncio.create_task(limit.acquire())
    await turns()
    limit.release(first, "answered")
    assert limit.try_acquire() is None  # it is the one's who waits
    limit.release(await waiting, "answered")
    assert limit.try_acquire() is not None
    assert limit.running == 2
    limit.release(second, "throttled", retry_after=1.0)
    assert limit.try_acquire() is None
    assert limiter(concurrency=2, requests_per_minute=60).try_acquire() is None


async def test_no_more_run_than_the_window_and_the_rest_queue_in_order():
    limit = limiter(concurrency=2)
    order = []

    async def one(number):
        ticket = await limit.acquire()
        order.append(number)
        return ticket

    tasks = [asyncio.create_task(one(number)) for number in range(5)]
    await turns()
    assert order == [0, 1]
    limit.release(tasks[0].result(), "answered")
    await turns()
    assert order == [0, 1, 2]
    assert limit.running == 2
    for task in tasks[1:3]:
        limit.release(task.result(), "answered")
    await turns()
    assert order == [0, 1, 2, 3, 4]


async def test_cancelled_waiters_lose_no_place():
    limit = limiter(concurrency=1)
    first = await limit.acquire()
    gone, next_one = (asyncio.create_task(limit.acquire()) for _ in range(2))
    await turns()
    limit.release(first, "answered")
    gone.cancel()  # at the very moment when it was given the place
    await turns()
    assert gone.cancelled()
    assert next_one.done()
    limit.release(next_one.result(), "answered")
    assert limit.running == 0


async def test_a_burst_of_refusals_halves_the_window_once_and_answers_widen_it():
    limit = limiter(concurrency=16)
    tickets = [await limit.acquire() for _ in range(16)]
    for ticket in tickets:
        limit.release(ticket, "throttled")
    assert limit.window == 8
    limit.release(await limit.acquire(), "throttled")
    assert limit.window == 4
    grown = []
    for _ in range(200):
        limit.release(await limit.acquire(), "answered")
        grown.append(limit.window)
    assert grown[5] == 5  # one more for about a window's worth of answers
    assert grown[-1] == 16


async def test_what_says_nothing_of_the_limits_changes_nothing():
    limit = limiter(concurrency=4)
    limit.release(await limit.acquire(), "unknown")
    assert limit.window == 4


async def test_a_fixed_limiter_keeps_its_window():
    limit = limiter(concurrency=4, adaptive=False)
    limit.release(await limit.acquire(), "throttled", 1.0)
    assert limit.window == 4


async def test_a_named_pause_holds_everybody(clock):
    limit = limiter(clock, concurrency=4)
    limit.release(await limit.acquire(), "throttled", 7.0)
    limit.release(await limit.acquire(), "answered")
    assert clock.slept == [7.0]


async def test_without_a_named_pause_one_at_a_time_backs_off_further_and_recovers(clock):
    limit = limiter(clock, concurrency=1)
    for _ in range(3):
        limit.release(await limit.acquire(), "throttled")
    limit.release(await limit.acquire(), "answered")
    assert clock.slept == [0.5, 1.0, 2.0]
    limit.release(await limit.acquire(), "throttled")
    limit.release(await limit.acquire(), "answered")
    assert clock.slept[3:] == [0.5]


async def test_rates_are_kept_after_a_pause_too(monkeypatch):
    now = 0.0
    sleepers: list[tuple[float, int, int, asyncio.Future[None]]] = []
    went: list[float] = []

    def sleep(seconds):
        future = asyncio.get_running_loop().create_future()
        heapq.heappush(sleepers, (now + seconds, len(went), id(future), future))
        return future

    async def one():
        await limit.acquire(tokens=5)
        went.append(round(now, 6))

    monkeypatch.setattr("penstock.balance.limiter.asyncio.sleep", sleep)
    limit = limiter(
        lambda: now, concurrency=20, requests_per_minute=60, tokens_per_minute=300, adaptive=False
    )
    first = await limit.acquire(tokens=5)
    tasks = [asyncio.create_task(one()) for _ in range(10)]
    await turns()
    limit.release(first, "throttled", retry_after=4.5)
    while sleepers:
        now, *_, future = heapq.heappop(sleepers)
        future.set_result(None)
        await turns()
    assert all(task.done() for task in tasks)
    assert went == [4.5 + number for number in range(10)]


async def test_requests_and_tokens_a_minute_are_kept(clock):
    limit = limiter(clock, concurrency=4, requests_per_minute=60, tokens_per_minute=6000)
    for tokens in (100, 300, 100):
        limit.release(await limit.acquire(tokens), "answered")
    assert [round(pause, 6) for pause in clock.slept] == [1.0, 3.0]
    limit.charge(500)
    limit.release(await limit.acquire(0), "answered")
    limit.release(await limit.acquire(1), "answered")
    assert round(clock.now, 6) == 1010.0  # the last 100 went at 1004; with those 500, 6 seconds


async def test_who_goes_away_gives_its_turn_back():
    one = limiter(requests_per_minute=60, tokens_per_minute=600)
    await one.acquire(10)
    gone = [asyncio.create_task(one.acquire(10)) for _ in range(30)]
    await turns()
    for task in gone:
        task.cancel()
    await asyncio.gather(*gone, return_exceptions=True)
    assert one._requests.free_at() == one._tokens.free_at() == pytest.approx(1)
    assert one.running == 1


async def test_who_leaves_the_middle_of_the_queue_lets_nobody_go_too_early(monkeypatch):
    now, sleeper = 0.0, None
    went: list[tuple[str, float]] = []

    def sleep(seconds):
        nonlocal sleeper
        sleeper = (now + seconds, asyncio.get_running_loop().create_future())
        return sleeper[1]

    async def go(name):
        await one.acquire()
        went.append((name, round(now, 6)))

    monkeypatch.setattr("penstock.balance.limiter.asyncio.sleep", sleep)
    one = limiter(lambda: now, concurrency=20, requests_per_minute=60)
    await one.acquire()
    tasks = {name: asyncio.create_task(go(name)) for name in "abcd"}
    await turns()
    tasks.pop("b").cancel()
    tasks["e"] = asyncio.create_task(go("e"))
    while not all(task.done() for task in tasks.values()):
        await turns()
        if sleeper is not None and not sleeper[1].done():
            now = sleeper[0]
            sleeper[1].set_result(None)
    assert went == [("a", 1), ("c", 2), ("d", 3), ("e", 4)]


async def test_who_is_served_does_not_wait_for_a_turn_that_is_far_away(clock):
    one = limiter(clock, requests_per_minute=0.5)
    await one.acquire()
    token = is_served.set(True)
    try:
        for _ in range(2):  # the first try has burnt nothing
            with pytest.raises(UpstreamError, match="next request in 2 min") as caught:
                await one.acquire()
    finally:
        is_served.reset(token)
    assert (caught.value.http_status, caught.value.retry_after, one.running) == (429, 60.0, 1)
    await one.acquire()
    assert clock.slept == [pytest.approx(120)]


class Alarms:
    """Time that passes when everybody sleeps."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        self._sleeping = []
        monkeypatch.setattr("penstock.balance.limiter.asyncio.sleep", self.sleep)

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        future = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleeping, (self.now + seconds, id(future), future))
        return future

    async def ring(self):
        self.now, _, future = heapq.heappop(self._sleeping)
        if not future.done():
            future.set_result(None)
        await turns()


@pytest.mark.parametrize("rates", [{}, {"requests_per_minute": 60_000}])
async def test_not_all_leave_at_the_end_of_a_pause(monkeypatch, rates):
    clock, spread = Alarms(monkeypatch), iter(range(100))
    limit = Limiter(
        Limits(concurrency=20, adaptive=False, **rates), clock=clock, jitter=lambda: next(spread)
    )
    went = []

    async def go():
        await limit.acquire()
        went.append(round(clock.now, 3))

    limit.release(await limit.acquire(), "throttled", retry_after=10.0)
    tasks = [asyncio.create_task(go()) for _ in range(5)]
    await turns()
    while not all(task.done() for task in tasks):
        await clock.ring()
    assert went == [10, 11, 12, 13, 14]


async def test_a_patient_request_does_not_hold_a_served_one_in_a_pause(monkeypatch):
    clock = Alarms(monkeypatch)
    limit = limiter(clock, concurrency=20, requests_per_minute=60, adaptive=False)
    first = await limit.acquire()
    patient = asyncio.create_task(limit.acquire())
    token = is_served.set(True)
    served = asyncio.create_task(limit.acquire())
    is_served.reset(token)
    await turns()
    limit.release(first, "throttled", retry_after=30.0)
    await clock.ring()  # the turn of the patient one, which waits for the pause now
    with pytest.raises(UpstreamError, match="left alone"):
        await asyncio.wait_for(served, 1)
    await clock.ring()
    assert patient.done()
    assert clock.now == 30.0


async def test_a_request_without_tokens_does_not_wait_for_a_rate_of_tokens(clock):
    limit = limiter(clock, concurrency=20, tokens_per_minute=60)
    await limit.acquire(tokens=100)
    waiting = asyncio.create_task(limit.acquire(tokens=100))
    await limit.acquire()
    assert clock.now == 1000.0
    waiting.cancel()


def test_processes_that_know_nothing_of_each_other_take_their_part():
    part = Limits(concurrency=10, requests_per_minute=600, tokens_per_minute=900).shared_by(3)
    assert part == Limits(concurrency=10, requests_per_minute=200, tokens_per_minute=300)
    assert Limits().shared_by(5) == Limits()


async def test_workers_of_one_process_share_what_asks_the_same_server():
    one = shared_limiter("http://a", Limits(concurrency=3, requests_per_minute=60))
    assert shared_limiter("http://a", Limits(concurrency=4, requests_per_minute=60)) is one
    assert one.window == 7
    one.leave(3)
    assert one.window == 4
    assert shared_limiter("http://b", Limits(concurrency=3, requests_per_minute=60)) is not one
    assert shared_limiter("http://a", Limits(concurrency=3, requests_per_minute=90)) is not one
    del one
    gc.collect()
    # Nobody held the old.
    assert shared_limiter("http://a", Limits(concurrency=3, requests_per_minute=60)).window == 3


async def test_one_more_worker_lets_waiting_requests_go():
    limit = limiter(concurrency=1)
    await limit.acquire()
    waiting = asyncio.create_task(limit.acquire())
    await turns()
    limit.join(1)
    await turns()
    assert waiting.done()
    limit.leave(1)
    assert limit.running == 2  # those under way stay
    assert limit.window == 1


async def test_who_is_served_does_not_wait_for_a_long_pause(clock):
    limit = limiter(clock, concurrency=1)
    first = await limit.acquire()
    patient = asyncio.create_task(limit.acquire())
    token = is_served.set(True)
    served = asyncio.create_task(limit.acquire())
    await turns()
    limit.release(first, "throttled", retry_after=20.0)
    with pytest.raises(UpstreamError):  # in the same instant
        await limit.acquire()
    with pytest.raises(UpstreamError, match="left alone for 20 s") as caught:
        await served
    assert (caught.value.http_status, caught.value.retry_after) == (429, 20.0)
    is_served.reset(token)
    limit.release(await patient, "answered")
    assert clock.now == 1020.0
    assert limit.running == 0
