from datetime import UTC, datetime

import pytest

from penstock.balance.backoff import is_served
from penstock.balance.limiter import refused_alone
from penstock.errors import EngineTimeoutError, RequestError, UpstreamError
from penstock.http.retries import Retries, is_retryable, is_throttling, retry_after

AT_ONCE = Retries(max_retries=2, base_wait_s=0)


def failing(*errors):
    """Fails with each error in turn, then answers how often it was called."""
    calls = 0

    async def attempt():
        nonlocal calls
        calls += 1
        if calls <= len(errors):
            raise errors[calls - 1]
        return calls

    return attempt


def status(number, **fields):
    return UpstreamError("", http_status=number, retryable=is_retryable(number), **fields)


async def test_failures_that_pass_are_tried_again():
    assert await AT_ONCE.run(failing(status(500), EngineTimeoutError(""))) == 3


async def test_failures_have_a_limit():
    with pytest.raises(EngineTimeoutError):
        await AT_ONCE.run(failing(status(500), status(502), EngineTimeoutError(""), status(500)))


async def test_refusals_for_load_count_apart():
    assert await AT_ONCE.run(failing(status(429), status(503), status(429), status(500))) == 5


@pytest.mark.parametrize("number", [408, 429, 498, 500, 503, 507, 529, 530, 598])
def test_statuses_that_may_pass(number):
    assert is_retryable(number)


@pytest.mark.parametrize("number", [400, 401, 404, 422, 501, 301])
async def test_what_does_not_pass_is_not_tried_again(number):
    with pytest.raises(UpstreamError):
        await AT_ONCE.run(failing(status(number)))


async def test_other_errors_come_through():
    with pytest.raises(RequestError):
        await AT_ONCE.run(failing(RequestError("")))


def test_pauses_double_with_jitter_up_to_the_longest():
    retries = Retries(max_retries=20, base_wait_s=15)
    for failures, upper in ((1, 15), (2, 30), (3, 60), (12, 60)):
        waits = {retries.after_failure(status(500), failures) or 0.0 for _ in range(20)}
        assert upper / 2 <= min(waits) <= max(waits) <= upper
        assert len(waits) > 1


def test_a_named_pause_is_kept_or_the_request_given_up():
    retries = Retries(max_retries=1, base_wait_s=1)
    assert retries.after_failure(status(500, retry_after=55.0), 1) == 55.0
    assert retries.after_failure(status(500, retry_after=65.0), 1) is None


class Time:
    """Passes in pauses alone."""

    def __init__(self):
        self.now = 1000.0
        self.paused = []

    def __call__(self):
        return self.now

    async def pause(self, error, seconds):
        self.paused.append(seconds)
        self.now += seconds

    def retries(self):
        return Retries(base_wait_s=0.5, pause=self.pause, clock=self)


async def refuse():
    raise status(429)


async def fine():
    return "yes"


async def test_nobody_answered_is_waited_out_for_a_minute():
    time = Time()
    retries = time.retries()
    with pytest.raises(UpstreamError, match=r"\(refused for [\d.]+ s\)") as caught:
        await retries.run(refuse)
    assert caught.value.given_up
    assert caught.value.retryable  # later
    assert 50 < time.now - 1000 <= 60
    assert max(time.paused) <= 2
    with pytest.raises(UpstreamError):  # the server has had its minute
        await retries.run(refuse)
    assert time.now - 1000 <= 62
    assert retries.refused_s > 50
    assert await retries.run(fine) == "yes"
    assert retries.refused_s == 0


async def test_who_is_refused_while_others_are_answered_is_given_up_in_seconds():
    time = Time()
    retries = time.retries()
    tries = 0

    async def bad():
        nonlocal tries
        tries += 1
        if tries == 2:
            for _ in range(20):
                assert await retries.run(fine) == "yes"
        raise status(429)

    with pytest.raises(
        UpstreamError, match=r"\(refused 5 times while 20 that came after it were answered\)"
    ) as caught:
        await retries.run(bad)
    assert caught.value.given_up
    assert time.now - 1000 < 7
    assert not refused_alone.get()()


async def test_who_is_refused_as_most_others_are_is_not_given_up():
    time = Time()
    retries = time.retries()
    tries = 0

    async def unlucky():
        nonlocal tries
        tries += 1
        if tries == 30:
            return "yes"
        with pytest.raises(UpstreamError):
            await retries.run(failing(*[status(429)] * 3, status(400)))
        assert await retries.run(fine) == "yes"
        raise status(429)

    assert await retries.run(unlucky) == "yes"


async def test_a_caller_that_waits_has_a_short_patience():
    time = Time()
    retries = time.retries()
    token = is_served.set(True)
    try:
        for error in (status(429), status(503)):
            began = time.now
            with pytest.raises(UpstreamError):
                await retries.run(failing(*[error] * 100))
            assert 2 < time.now - began <= 5
        began = time.now
        with pytest.raises(UpstreamError):
            await retries.run(failing(status(429, retry_after=7)))
        assert time.now == began
    finally:
        is_served.reset(token)


@pytest.mark.parametrize(("named", "answers"), [(31, True), (60, True), (61, False)])
async def test_a_named_pause_within_the_patience_is_waited(named, answers):
    time = Time()
    made = time.retries().run(failing(status(429, retry_after=named)))
    if answers:
        assert await made == 2
        assert time.paused == [named]
    else:
        with pytest.raises(UpstreamError) as caught:
            await made
        assert caught.value.given_up
        assert not time.paused


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "3"}, 3.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": "-3"}, 0.0),
        ({"retry-after": "Sat, 21 Nov 2026 12:00:10 GMT"}, 10.0),
        ({"retry-after": "Sat, 21 Nov 2026 11:00:00 GMT"}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "1e300"}, 365 * 86400.0),
        ({"retry-after": "Fri, 31 Dec 99999 23:59:59 GMT"}, None),
        ({"retry-after": "Fri, 31 Dec 9999 23:59:59 -1400"}, 365 * 86400.0),
        ({"retry-after": "Mon, 01 Jan 0001 00:00:00 +1400"}, 0.0),
        ({"retry-after": "Sat, 21 Nov 2026 12:00:10 +99999999"}, None),
        ({"retry-after": "Sat, 99 Xyz 2026"}, None),
        ({"retry-after": ""}, None),
        ({"retry-after-ms": "250", "retry-after": "1"}, 0.25),
        ({"retry-after-ms": "-250"}, 0.0),
        ({"retry-after-ms": "inf"}, None),
        ({"retry-after-ms": "nan"}, None),
    ],
)
def test_retry_after_is_read_in_its_forms(headers, seconds):
    assert retry_after(headers, datetime(2026, 11, 21, 12, tzinfo=UTC)) == seconds


def test_a_used_up_quota_is_no_throttling():
    assert is_throttling(UpstreamError("x", http_status=429, retryable=True))
    assert not is_throttling(UpstreamError("x", http_status=429))
