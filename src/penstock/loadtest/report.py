"""The findings of load tests as plain tables and as line charts in SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from statistics import median

from penstock.loadtest.jobs import JOB, Findings
from penstock.loadtest.statistics import Ratio, Spread, Summary, Targets, ratio

Line = Sequence[tuple[float, float]]

_COLOURS = ("#1f6fb2", "#d1603d", "#3a8f5c", "#7d5ba6", "#8a6d1b", "#444444")
_WIDTH, _HEIGHT = 720, 420
_LEFT, _RIGHT, _TOP, _BOTTOM = 80, 24, 48, 64
_MOST_POINTS = 400


def line_chart(
    title: str,
    x_label: str,
    y_label: str,
    lines: Mapping[str, Line],
    *,
    marks: Mapping[str, tuple[float, float]] | None = None,
    log_x: bool = False,
    dots: bool = False,
) -> str:
    """A chart as SVG text: a line for each name, and points with a remark. Points without a
    positive `x` are left out where the axis is logarithmic.
    """
    lines = {
        name: [point for point in _thinned(line) if not log_x or point[0] > 0]
        for name, line in lines.items()
    }
    xs = [x for line in lines.values() for x, _ in line] or [1.0]
    ys = [y for line in lines.values() for _, y in line] or [1.0]
    low, high = (min(xs), max(xs)) if log_x else (0.0, max(xs))
    if low == high:
        low, high = (high / 2, high * 2) if log_x else (0.0, high or 1.0)
    top = max(ys) or 1.0

    def x_at(x: float) -> float:
        share = math.log(x / low) / math.log(high / low) if log_x else (x - low) / (high - low)
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    def y_at(y: float) -> float:
        return _HEIGHT - _BOTTOM - y / top * (_HEIGHT - _TOP - _BOTTOM)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}"'
        ' font-family="sans-serif" font-size="13" role="img">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#ffffff"/>',
        _text(_WIDTH / 2, 22, title, "middle", size=15),
        _text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 30, x_label, "middle"),
        f'<g transform="translate(16 {(_TOP + _HEIGHT - _BOTTOM) / 2}) rotate(-90)">'
        f"{_text(0, 0, y_label, 'middle')}</g>",
    ]
    for tick in _log_ticks(low, high) if log_x else _ticks(high):
        parts.append(_rule(x_at(tick), _TOP, x_at(tick), _HEIGHT - _BOTTOM))
        parts.append(_text(x_at(tick), _HEIGHT - _BOTTOM + 18, f"{tick:g}", "middle"))
    for tick in _ticks(top):
        parts.append(_rule(_LEFT, y_at(tick), _WIDTH - _RIGHT, y_at(tick)))
        parts.append(_text(_LEFT - 6, y_at(tick) + 4, f"{tick:g}", "end"))
    for number, (name, line) in enumerate(lines.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        points = " ".join(f"{x_at(x):.1f},{y_at(y):.1f}" for x, y in line)
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>'
        )
        if dots:
            parts += [
                f'<circle cx="{x_at(x):.1f}" cy="{y_at(y):.1f}" r="3.5" fill="{colour}"/>'
                for x, y in line
            ]
        place = _LEFT + 10 + number * (_WIDTH - _LEFT - _RIGHT) / max(len(lines), 1)
        parts.append(
            f'<rect x="{place:.0f}" y="{_HEIGHT - 18}" width="12" height="4" fill="{colour}"/>'
        )
        parts.append(_text(place + 18, _HEIGHT - 11, name, "start"))
    for remark, (x, y) in (marks or {}).items():
        parts.append(
            f'<circle cx="{x_at(x):.1f}" cy="{y_at(y):.1f}" r="7" fill="none" stroke="#222222"'
            ' stroke-width="2"/>'
        )
        side = "end" if x_at(x) > _WIDTH / 2 else "start"
        parts.append(_text(x_at(x) + (-12 if side == "end" else 12), y_at(y) + 18, remark, side))
    return "\n".join([*parts, "</svg>", ""])


def distribution(times: Sequence[float]) -> Line:
    """The cumulative distribution of times: (time, share of all in percent that are no longer)."""
    ordered = sorted(times)
    return [(time, 100 * number / len(ordered)) for number, time in enumerate(ordered, 1)]


def _thinned(line: Line) -> Line:
    if len(line) <= _MOST_POINTS:
        return line
    step = (len(line) - 1) / (_MOST_POINTS - 1)
    return [line[round(number * step)] for number in range(_MOST_POINTS)]


def _ticks(most: float) -> list[float]:
    """About five round numbers from 0 on."""
    step = 10 ** math.floor(math.log10(most / 5))
    step *= next(factor for factor in (1, 2, 5, 10) if most / (step * factor) <= 6)
    return [number * step for number in range(int(most / step) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [
        tick for power in powers for one in (1, 2, 5) if low <= (tick := one * 10**power) <= high
    ]
    return ticks if len(ticks) <= 10 else ticks[:: len(ticks) // 8]


def _rule(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="#dddddd"/>'


def _text(x: float, y: float, text: str, anchor: str, *, size: int = 13) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}"'
        f' fill="#222222">{escape(text)}</text>'
    )


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
    latencies = [["MILLISECONDS", "MEAN", "P50", "P90", "P99", "MAX"]]
    for name, attribute in _LATENCIES:
        latencies.append([name, *_cells(getattr(found, attribute))])
    tables = [counts, latencies]
    if found.goodput is not None:
        tables.append(
            [
                ["GOODPUT", "SHARE", "TARGET"],
                [f"{found.goodput:.2f}/s", f"{found.good_share:.0%}", _targets(targets)],
            ]
        )
    if found.errors:
        errors = [["ERROR", "REQUESTS", "FIRST OF THEM"]]
        for kind, number in found.errors.items():
            errors.append([kind, f"{number:,}", found.examples[kind] or "-"])
        tables.append(errors)
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
        cells = [load, f"{found.requests_per_s:.2f}", f"{found.output_tokens_per_s:,.0f}"]
        for spread, name in (
            (found.ttft_ms, "p50"),
            (found.ttft_ms, "p99"),
            (found.e2e_ms, "p50"),
        ):
            cells.append("-" if spread is None else f"{getattr(spread, name):.1f}")
        cells.append(f"{found.failed:,}")
        if found.goodput is not None:
            cells.append(f"{found.goodput:.2f}")
        cells += [f"{found.generator_cpu:.0%}", "<- knee" if number == knee else ""]
        rows.append(cells)
    return rows


COMPARED = (
    ("output tokens/s", lambda found: found.output_tokens_per_s),
    ("requests/s", lambda found: found.requests_per_s),
    ("time to first token p50, ms", lambda found: _of(found.ttft_ms)),
    ("time per output token p50, ms", lambda found: _of(found.tpot_ms)),
    ("end to end p50, ms", lambda found: _of(found.e2e_ms)),
)


def ratios(first: Sequence[Summary], second: Sequence[Summary]) -> dict[str, Ratio | None]:
    """B over A of each number, paired round by round."""
    return {
        name: ratio([value(one) for one in first], [value(one) for one in second])
        for name, value in COMPARED
    }


def comparison_table(names: Sequence[str], runs: Sequence[Sequence[Summary]]) -> Rows:
    """The medians of both sides, and B over A with its spread."""
    rows = [["", f"A {names[0]}", f"B {names[1]}", "B / A", "LEAST..GREATEST"]]
    for (name, value), found in zip(COMPARED, ratios(*runs).values(), strict=True):
        cells = [name, *(_number(median(map(value, side))) for side in runs)]
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
        cells.append(f"{found.tokens_per_s(name):,.0f}")
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
