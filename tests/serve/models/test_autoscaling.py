"""How many replicas there should be, decided from requests at given times."""

import pytest

from penstock.errors import ConfigError
from penstock.llm_config.model import AutoscalingConfig
from penstock.serve.models.autoscaling import Autoscaler


def scaler(fewest=1, most=4, target=2.0, **scaling):
    given = {"upscale_delay_s": 3.0, "downscale_delay_s": 5.0, "look_back_period_s": 0.0}
    config = AutoscalingConfig(min_replicas=fewest, max_replicas=most, **{**given, **scaling})
    return Autoscaler(config, target, fewest, most)


def run(autoscaler, requests, replicas):
    """Decide once a second; the numbers of replicas after each decision."""
    counts = []
    for now, count in enumerate(requests):
        replicas = autoscaler.decide(float(now), count, replicas)
        counts.append(replicas)
    return counts


def test_more_come_when_the_need_has_lasted():
    assert run(scaler(), [6] * 5, 1) == [1, 1, 1, 3, 3]


def test_a_need_that_passes_changes_nothing():
    assert run(scaler(), [6, 6, 6, 2, 6, 6, 6], 1) == [1] * 7


def test_there_are_never_more_than_the_most():
    assert run(scaler(upscale_delay_s=0.0), [100], 1) == [4]


def test_fewer_stay_when_there_is_less_to_do():
    assert run(scaler(), [2] * 7, 3) == [3, 3, 3, 3, 3, 1, 1]


def test_the_last_one_goes_after_a_delay_of_its_own():
    to_zero = scaler(fewest=0, downscale_delay_s=2.0, downscale_to_zero_delay_s=4.0)
    assert run(to_zero, [0] * 8, 2) == [2, 2, 1, 1, 1, 1, 1, 0]


def test_requests_too_short_to_be_seen_keep_the_last_one():
    to_zero = scaler(fewest=0, downscale_to_zero_delay_s=4.0)
    counts = [to_zero.decide(float(now), 0, 1, asked=now % 4 == 0) for now in range(12)]
    assert counts == [1] * 12
    assert [to_zero.decide(float(now), 0, 1) for now in range(12, 14)] == [1, 0]


def test_a_request_brings_the_first_one_at_once():
    assert run(scaler(fewest=0), [1], 0) == [1]
    assert run(scaler(fewest=0), [0], 0) == [0]


def test_requests_are_averaged_over_the_time_that_is_looked_back():
    calm = scaler(look_back_period_s=10.0, upscale_delay_s=0.0)
    assert run(calm, [0, 0, 0, 6], 1) == [1, 1, 1, 1]
    peak = scaler(look_back_period_s=10.0, upscale_delay_s=0.0, aggregation_function="max")
    assert run(peak, [0, 0, 0, 6], 1) == [1, 1, 1, 3]


def test_factors_make_it_slower_and_never_stuck():
    slow = scaler(upscaling_factor=0.5, upscale_delay_s=0.0)
    assert run(slow, [8], 1) == [3]
    down = scaler(downscaling_factor=0.1, downscale_delay_s=0.0)
    assert run(down, [2, 2, 2], 3) == [2, 1, 1]


def test_an_unknown_function_is_refused():
    with pytest.raises(ConfigError, match="aggregation_function"):
        scaler(aggregation_function="median")
