from msgspec.structs import replace

from penstock.loadtest.client import Sample
from penstock.loadtest.jobs import BARE, JOB, Findings
from penstock.loadtest.report import (
    batch_table,
    comparison_table,
    own_cost,
    run_tables,
    sweep_table,
)
from penstock.loadtest.statistics import Ratio, Targets, summary
from penstock.loadtest.study import Run


def run(seconds=2.0, cpu=0.1, **more):
    good = Sample(0.0, 0.0, 0.1, 0.5, 0.5, pieces=5, output_tokens=5, input_tokens=3)
    return Run([good, Sample(0.0, error="HTTP 429", why="busy", **more)], seconds, cpu)


def test_a_run():
    targets = Targets(ttft_ms=200)
    counts, latencies, goodput, errors = run_tables(summary(run(), targets), targets)
    assert counts[1] == ["2", "1", "2.0", "0.50", "3", "5", "2"]
    assert latencies[1] == ["time to first token", *["100.0"] * 5]
    assert latencies[3] == ["inter-token latency", *["-"] * 5]
    assert goodput[1] == ["0.50/s", "50%", "first token ≤ 200 ms"]
    assert errors[1] == ["HTTP 429", "1", "busy"]


def test_the_own_cost_warns_near_the_limit():
    assert own_cost(summary(run())) == "load generator: 5% of a core, 20000 µs a piece"
    assert "warning: the load generator is near its limit" in own_cost(summary(run(cpu=1.8)))


def test_a_sweep_marks_its_knee():
    table = sweep_table([("1 client", summary(run())), ("2 clients", summary(run(1.0)))], 1)
    assert table[2] == ["2 clients", "1.00", "5", "100.0", "100.0", "500.0", "1", "10%", "<- knee"]
    assert table[1][-1] == ""
    failed = summary(Run([Sample(0.0, error="timeout")], 1.0, 0.0))
    assert sweep_table([("1", failed)], 0)[1][3:6] == ["-", "-", "-"]


def test_a_comparison_has_ratios_with_their_spread():
    sides = [[summary(run(2.0)), summary(run(2.0))], [summary(run(1.0)), summary(run(4.0))]]
    table = comparison_table(["x", "y"], sides)
    assert table[0] == ["", "A x", "B y", "B / A", "LEAST..GREATEST"]
    assert table[1] == ["output tokens/s", "2.5", "3.125", "1.25", "0.50..2.00"]
    assert table[-1] == ["failed", "2", "2", "", ""]


def test_a_comparison_with_targets_has_their_goodput():
    targets = Targets(ttft_ms=200)
    sides = [[summary(run(2.0), targets)], [summary(run(1.0), targets)]]
    *_, goodput, failed = comparison_table(["x", "y"], sides)
    assert goodput == ["goodput, requests/s", "0.5", "1", "2.00", "2.00..2.00"]
    none_kept = [replace(one, goodput=0.0) for one in sides[1]]
    *_, goodput, failed = comparison_table(["x", "y"], [sides[0], none_kept])
    assert goodput[:3] == ["goodput, requests/s", "0.5", "0"]
    assert failed[0] == "failed"


def test_a_job_over_the_bare_loop():
    found = Findings(10, 100, {BARE: [2.0], JOB: [4.0]}, Ratio(0.5, 0.5, 0.5), 4096, False)
    assert batch_table(found)[1:] == [
        [BARE, "10", "100", "2.00", "50", "", ""],
        [JOB, "10", "100", "4.00", "25", "0.50", "0.50..0.50"],
    ]
