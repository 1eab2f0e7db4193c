import pytest

from penstock.loadtest.arrivals import poisson, ramp


def test_a_poisson_process_keeps_its_rate_and_its_seed():
    times = poisson(5.0, 2_000, seed=1)
    assert times == sorted(times) == poisson(5.0, 2_000, seed=1)
    assert times != poisson(5.0, 2_000, seed=2)
    assert times[-1] == pytest.approx(400, rel=0.1)


@pytest.mark.parametrize(("first", "last"), [(0, 20), (20, 0), (10, 10)])
def test_a_ramp_has_its_mean_rate_and_its_direction(first, last):
    times = ramp(first, last, 200, seed=1)
    assert times == sorted(times)
    assert times[-1] < 200
    assert len(times) == pytest.approx((first + last) / 2 * 200, rel=0.1)
    early = sum(time < 100 for time in times) / len(times)
    assert early == pytest.approx({0: 0.25, 20: 0.75, 10: 0.5}[first], abs=0.05)
