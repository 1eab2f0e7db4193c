"""Line charts as SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

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
