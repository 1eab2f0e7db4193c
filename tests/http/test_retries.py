from datetime import UTC, datetime

import pytest

from penstock.errors import EngineTimeoutError, RequestError, UpstreamError
from penstock.http.retries import RetryPolicy, is_retryable, is_throttling, retry_after

AT_ONCE = RetryPolicy(max_retries=2, max_throttled=3, base_wait_s=0)


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
    with pytest.raises(UpstreamError):
        await AT_ONCE.run(failing(*[status(429)] * 4))


@pytest.mark.parametrize("number", [400, 401, 404, 422, 501, 301])
async def test_what_does_not_pass_is_not_tried_again(number):
    with pytest.raises(UpstreamError):
        await AT_ONCE.run(failing(status(number)))


async def test_other_errors_come_through():
    with pytest.raises(RequestError):
        await AT_ONCE.run(failing(RequestError("")))


def test_pauses_double_with_jitter_up_to_the_longest():
    policy = RetryPolicy(max_retries=20, base_wait_s=1, longest_wait_s=8)
    for failures, upper in ((1, 1), (2, 2), (3, 4), (4, 8), (12, 8)):
        waits = {policy.wait(status(500), failures, 0) or 0.0 for _ in range(20)}
        assert upper / 2 <= min(waits) <= max(waits) <= upper
        assert len(waits) > 1


def test_a_named_pause_is_kept_or_the_request_given_up():
    policy = RetryPolicy(max_retries=1, base_wait_s=1, longest_wait_s=8)
    assert policy.wait(status(429, retry_after=5.0), 0, 1) == 5.0
    assert policy.wait(status(429, retry_after=9.0), 0, 1) is None


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
