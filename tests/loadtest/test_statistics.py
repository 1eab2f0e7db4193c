import pytest

from penstock.loadtest.client import Sample
from penstock.loadtest.statistics import Ratio, Targets, knee, quantile, ratio, summary
from penstock.loadtest.study import Run


def sample(first=0.1, end=0.5, tokens=5, due=0.0, **more):
    return Sample(
        due, due, due + first, due + end, due + end, pieces=tokens, output_tokens=tokens, **more
    )


def test_the_numbers_of_a_run():
    run = Run([sample(), sample(first=0.3, end=0.7, due=1.0, gaps=[0.1, 0.3])], 2.0, 0.5)
    found = summary(run)
    assert found.ttft_ms
    assert found.tpot_ms
    assert found.itl_ms
    assert found.e2e_ms
    assert (found.requests, found.failed, found.errors) == (2, 0, {})
    assert (found.requests_per_s, found.output_tokens_per_s) == (1.0, 5.0)
    assert found.ttft_ms.p50 == pytest.approx(100)
    assert found.ttft_ms.max == pytest.approx(300)
    assert found.tpot_ms.mean == pytest.approx(100)
    assert found.itl_ms.max == pytest.approx(300)
    assert found.e2e_ms.p99 == pytest.approx(700)
    assert found.goodput is None
    assert found.generator_cpu == 0.25
    assert found.generator_us_per_piece == pytest.approx(50_000)


def test_failures_have_kinds_and_no_latency():
    bad = Sample(0.0, error="HTTP 429", why="busy")
    found = summary(Run([bad, bad, Sample(0.0, error="timeout", why="late")], 1.0, 0.0))
    assert found.errors == {"HTTP 429": 2, "timeout": 1}
    assert found.examples == {"HTTP 429": "busy", "timeout": "late"}
    assert found.ttft_ms is found.tpot_ms is found.e2e_ms is None
    assert found.output_tokens_per_s == 0


@pytest.mark.parametrize(
    ("targets", "good"),
    [
        (Targets(ttft_ms=200), 1),
        (Targets(tpot_ms=150), 2),
        (Targets(tpot_ms=50), 0),
        (Targets(ttft_ms=400, e2e_ms=600), 1),
    ],
)
def test_goodput_keeps_all_targets(targets, good):
    failed = Sample(0.0, error="timeout")
    run = Run([sample(), sample(first=0.3, end=0.7), failed], 2.0, 0.0)
    found = summary(run, targets)
    assert found.goodput == good / 2
    assert found.good_share == good / 3


def test_an_answer_of_one_token_has_no_time_per_token():
    found = summary(Run([sample(tokens=1)], 1.0, 0.0), Targets(tpot_ms=1))
    assert found.tpot_ms is None
    assert found.goodput == 1


def test_a_server_that_counts_no_tokens_gives_one_in_each_piece():
    silent = Sample(0.0, 0.0, 0.1, 0.3, 0.3, pieces=3)
    assert summary(Run([silent], 1.0, 0.0)).output_tokens == 3


def test_quantiles_are_values_that_occurred():
    assert [quantile([1, 2, 3, 4], share) for share in (0.5, 0.9, 1)] == [2, 4, 4]
    assert quantile([7], 0.5) == 7


def test_ratios_are_paired():
    assert ratio([1, 2, 4], [2, 2, 2]) == Ratio(1, 0.5, 2)
    assert ratio([0, 1], [1, 1]) is None


def test_the_knee_is_where_throughput_over_latency_is_greatest():
    assert knee([(100, 10), (190, 11), (300, 15), (310, 40)]) == 2
    assert knee([(100, 10)]) == 0
    assert knee([(0, 0), (5, 1)]) == 1
