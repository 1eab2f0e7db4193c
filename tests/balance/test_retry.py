import pytest

from penstock.balance.retry import Retry, backoff
from penstock.errors import OverloadedError

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
        waits = {backoff(failures, first=1, longest=8) for _ in range(20)}
        assert whole / 2 <= min(waits) <= max(waits) <= whole
        assert len(waits) > 1


def test_no_first_is_no_wait():
    assert backoff(3, first=0, longest=8) == 0


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
