import pytest

from penstock.errors import ConfigError, PenstockError
from penstock.loadtest.jobs import BARE, JOB, compared, fitted
from penstock.loadtest.workload import Workload


def test_lengths_are_capped_to_the_model():
    fit = fitted(Workload("code"), 4096)
    assert (fit.max_output, fit.max_input) == (2048, (4096 - 2048 - 128) * 31 // 32)
    fit = fitted(Workload("code", max_output=100, max_input=9000), 4096)
    assert (fit.max_output, fit.max_input) == (100, (4096 - 100 - 128) * 31 // 32)
    assert (
        fitted(Workload("code", output_tokens=16), 4096).max_input == (4096 - 16 - 128) * 31 // 32
    )
    with pytest.raises(ConfigError, match="too short for a workload"):
        fitted(Workload("code"), 200)


def test_a_model_that_is_not_there():
    with pytest.raises(PenstockError, match="no model 'nosuch'"):
        compared("nosuch", Workload(), 1, 1, print)


@pytest.mark.slow
def test_the_demo_model():
    said: list[str] = []
    found = compared("demo", Workload(input_tokens=20, output_tokens=4), 6, 1, said.append)
    assert said == ["round 1 of 1: bare loop", "round 1 of 1: penstock job"]
    assert (found.rows, found.tokens, found.capped) == (6, 24, False)
    assert min(*found.seconds[BARE], *found.seconds[JOB]) > 0
