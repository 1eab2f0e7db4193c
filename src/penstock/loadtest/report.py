"""The findings of load tests as plain tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median

from penstock.loadtest.jobs import JOB, Findings
from penstock.loadtest.statistics import Ratio, Spread, Summary, Targets, ratio

_LATENCIES = (
    ("time to first token", "ttft_ms"),
    ("time per output token", "tpot_ms"),
    ("inter-token latency", "itl_ms"),
    ("end to end", "e2e_ms"),
)
MANY_CPU = 0.7
"""From this share of a core on, the load generator itself may be what is measured."""

Rows = list[list[str]]


def run_tables(found: Summary, targets: Targets) -> list[Rows]:
    """A run: counts and rates, latencies, and errors where there are any."""
    counts = [
        ["REQUESTS", "FAILED", "SECONDS", "REQUESTS/S", "TOKENS IN", "TOKENS OUT", "TOKENS OUT/S"],
        [
            *(f"{found.requests:,}", f"{found.failed:,}", f"{found.seconds:.1f}"),
            *(f"{found.requests_per_s:.2f}", f"{found.input_tokens:,}"),
            *(f"{found.output_tokens:,}", f"{found.output_tokens_per_s:,.0f}"),
        ],
    ]
    latencies = [
        ["MILLISECONDS", "MEAN", "P50", "P90", "P99", "MAX"],
        *([name, *_cells(getattr(found, attribute))] for name, attribute in _LATENCIES),
    ]
    tables = [counts, latencies]
    if found.goodput is not None:
        tables.append(
            [
                ["GOODPUT", "SHARE", "TARGET"],
                [f"{found.goodput:.2f}/s", f"{found.good_share:.0%}", _targets(targets)],
            ]
        )
    if found.errors:
        errors = (
            [kind, f"{number:,}", found.examples[kind] or "-"]
            for kind, number in found.errors.items()
        )
        tables.append([["ERROR", "REQUESTS", "FIRST OF THEM"], *errors])
    return tables


def own_cost(found: Summary) -> str:
    """What the load generator cost, and whether that may have bent the result."""
    late = "" if found.lag_ms is None else f", sent {found.lag_ms.p99:.1f} ms late (p99)"
    line = (
        f"load generator: {found.generator_cpu:.0%} of a core,"
        f" {found.generator_us_per_piece:.0f} µs a piece{late}"
    )
    if found.generator_cpu > MANY_CPU:
        line += "\nwarning: the load generator is near its limit; figures may be its own"
    return line


def sweep_table(levels: Sequence[tuple[str, Summary]], knee: int) -> Rows:
    """A row for each level of load; the knee is marked."""
    rows = [
        ["LOAD", "REQUESTS/S", "TOKENS OUT/S", "TTFT P50", "TTFT P99", "E2E P50", "FAILED"]
        + (["GOODPUT"] if levels[0][1].goodput is not None else [])
        + ["CPU", ""]
    ]
    for number, (load, found) in enumerate(levels):
        spreads = ((found.ttft_ms, "p50"), (found.ttft_ms, "p99"), (found.e2e_ms, "p50"))
        cells = [
            *(load, f"{found.requests_per_s:.2f}", f"{found.output_tokens_per_s:,.0f}"),
            *("-" if one is None else f"{getattr(one, name):.1f}" for one, name in spreads),
            f"{found.failed:,}",
            *([] if found.goodput is None else [f"{found.goodput:.2f}"]),
            *(f"{found.generator_cpu:.0%}", "<- knee" if number == knee else ""),
        ]
        rows.append(cells)
    return rows


_Figure = tuple[str, Callable[[Summary], float]]
_COMPARED: tuple[_Figure, ...] = (
    ("output tokens/s", lambda found: found.output_tokens_per_s),
    ("requests/s", lambda found: found.requests_per_s),
    ("time to first token p50, ms", lambda found: _of(found.ttft_ms)),
    ("time per output token p50, ms", lambda found: _of(found.tpot_ms)),
    ("end to end p50, ms", lambda found: _of(found.e2e_ms)),
)


def _figures(found: Summary) -> tuple[_Figure, ...]:
    goodput: _Figure = ("goodput, requests/s", lambda found: found.goodput or 0.0)
    return _COMPARED if found.goodput is None else (*_COMPARED, goodput)


def ratios(first: Sequence[Summary], second: Sequence[Summary]) -> dict[str, Ratio | None]:
    """B over A of each number, paired round by round."""
    return {
        name: ratio([value(one) for one in first], [value(one) for one in second])
        for name, value in _figures(first[0])
    }


def comparison_table(names: Sequence[str], runs: Sequence[Sequence[Summary]]) -> Rows:
    """The medians of both sides, and B over A with its spread."""
    rows = [["", f"A {names[0]}", f"B {names[1]}", "B / A", "LEAST..GREATEST"]]
    for (name, value), found in zip(_figures(runs[0][0]), ratios(*runs).values(), strict=True):
        middles = [median(map(value, side)) for side in runs]
        # No latency is 0: there is none, as of tokens that are not streamed.
        lacking = 0.0 if name.endswith("ms") else None
        cells = [name, *("-" if middle == lacking else _number(middle) for middle in middles)]
        if found is None:
            cells += ["-", "-"]
        else:
            cells += [f"{found.median:.2f}", f"{found.least:.2f}..{found.greatest:.2f}"]
        rows.append(cells)
    rows.append(["failed", *(f"{sum(one.failed for one in side):,}" for side in runs), "", ""])
    return rows


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 9_999.5 else f"{value:,.5g}"


def batch_table(found: Findings) -> Rows:
    """Both sides' medians, and the job's speed over the bare loop's."""
    rows = [["", "ROWS", "TOKENS OUT", "SECONDS", "TOKENS OUT/S", "OVER BARE", "LEAST..GREATEST"]]
    for name, seconds in found.seconds.items():
        cells = [name, f"{found.rows:,}", f"{found.tokens:,}", f"{median(seconds):.2f}"]
        cells.append(f"{found.tokens / median(seconds):,.0f}")
        if name == JOB and found.ratio is not None:
            spread = f"{found.ratio.least:.2f}..{found.ratio.greatest:.2f}"
            cells += [f"{found.ratio.median:.2f}", spread]
        else:
            cells += ["", ""]
        rows.append(cells)
    return rows


def _cells(spread: Spread | None) -> list[str]:
    if spread is None:
        return ["-"] * 5
    return [f"{getattr(spread, name):,.1f}" for name in ("mean", "p50", "p90", "p99", "max")]


def _targets(targets: Targets) -> str:
    names = (("ttft_ms", "first token"), ("tpot_ms", "a token"), ("e2e_ms", "end to end"))
    found = ((text, getattr(targets, name)) for name, text in names)
    return ", ".join(f"{text} ≤ {limit:g} ms" for text, limit in found if limit is not None)


def _of(spread: Spread | None) -> float:
    return 0.0 if spread is None else spread.p50
