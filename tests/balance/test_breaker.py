import pytest

from penstock.balance.breaker import LONGEST_COOLDOWN_S, CircuitBreaker


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def breaker(clock):
    return CircuitBreaker(3, 1.0, clock)


def test_one_request_is_one_failure_however_often_it_is_asked_again(breaker):
    for _ in range(100):
        breaker.failed("a")
    breaker.failed("b")
    assert not breaker.suspected
    breaker.failed("c")
    assert breaker.suspected
    assert breaker.closed  # it takes a probe


def test_an_answer_between_clears_a_server(breaker):
    for request in "abcdefgh":
        breaker.failed(request)
        breaker.answered()
    assert not breaker.suspected


def test_each_connection_that_could_not_be_made_counts(breaker):
    for _ in range(3):
        breaker.unreachable()
    assert breaker.suspected


def test_only_a_probe_opens_it_and_only_one_goes_at_a_time(breaker):
    for request in "abc":
        breaker.failed(request)
    assert breaker.probe_due
    breaker.begin_probe()
    assert not breaker.probe_due
    assert breaker.closed
    breaker.probed(False)
    assert not breaker.closed


def test_a_server_that_proves_well_is_not_suspected_for_a_while(breaker, clock):
    for request in "abc":
        breaker.failed(request)
    breaker.begin_probe()
    breaker.probed(True)
    for request in "defghi":
        breaker.failed(request)
    assert not breaker.suspected
    clock.now = 1.0
    for request in "jkl":
        breaker.failed(request)
    assert breaker.suspected


def test_probes_come_after_pauses_that_double_and_have_a_bound(breaker, clock):
    breaker.trip()
    pauses = []
    for _ in range(8):
        pauses.append(breaker.wait_s)
        assert not breaker.probe_due
        clock.now += breaker.wait_s
        assert breaker.probe_due
        breaker.begin_probe()
        assert breaker.wait_s == float("inf")
        breaker.probed(False)
    assert pauses == [1, 2, 4, 8, 16, LONGEST_COOLDOWN_S, LONGEST_COOLDOWN_S, LONGEST_COOLDOWN_S]
    clock.now += breaker.wait_s
    breaker.begin_probe()
    breaker.probed(True)
    assert breaker.closed
    breaker.trip()
    assert breaker.wait_s == 1.0


def test_a_probe_that_found_nothing_is_sent_again(breaker):
    for request in "abc":
        breaker.failed(request)
    breaker.begin_probe()
    breaker.probed(None)
    assert breaker.probe_due


def test_a_request_that_is_answered_while_it_is_open_closes_it(breaker):
    breaker.trip()
    breaker.answered()
    assert breaker.closed
