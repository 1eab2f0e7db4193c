"""The table and the picture of a peer, and their place in a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path

from harness import Bar, Comparison

_WIDTH, _ROW, _LEFT, _SCALE = 720, 46, 20, 560
_KEPT, _MISSED = "#3a8f5c", "#d1603d"


def table(comparisons: Sequence[Comparison], bars: Sequence[Bar]) -> str:
    """What every side did, then what was promised."""
    lines = [
        "| what | side | median (least..greatest) | over the first |",
        "| --- | --- | --- | --- |",
    ]
    for one in comparisons:
        base = next(iter(one.series))
        for name, series in one.series.items():
            over = "" if name == base else str(one.ratio(name, base))
            what = one.title if name == base else ""
            lines.append(f"| {what} | {name} | {series} {one.unit} | {over} |")
    lines += ["", "| Penstock over the peer | measured | promised | |", "| --- | --- | --- | --- |"]
    for bar in bars:
        rule = "at least" if bar.at_least else "at most"
        met = "met" if bar.met else "MISSED"
        lines.append(f"| {bar.text} | {bar.value:.3g} | {rule} {bar.limit:g} | {met} |")
    return "\n".join(lines)


def picture(title: str, bars: Sequence[Bar]) -> str:
    """The promises as SVG: how many times as fast as the peer, which is the line at 1, with a mark
    at what was promised.
    """
    shown = [(bar, *_times(bar)) for bar in bars]
    step = _SCALE / max([1.0, *(max(value, limit) for _, value, limit in shown)])
    height = 58 + _ROW * len(bars)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}"'
        ' font-family="sans-serif" font-size="13" role="img">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="{_LEFT}" y="24" font-size="15">'
        f"{escape(title)}: times as fast; mark: promised</text>",
        f'<path d="M{_LEFT + step:.1f} 36V{height - 8}" stroke="#999999"/>',
        f'<text x="{_LEFT + step + 4:.1f}" y="38" font-size="11">the peer</text>',
    ]
    for number, (bar, value, limit) in enumerate(shown):
        y = 58 + _ROW * number
        colour = _KEPT if bar.met else _MISSED
        end = _LEFT + step * value
        parts += [
            f'<text x="{_LEFT}" y="{y}">{escape(bar.text)}</text>',
            f'<rect x="{_LEFT}" y="{y + 6}" width="{step * value:.1f}" height="14"'
            f' fill="{colour}"/>',
            f'<path d="M{_LEFT + step * limit:.1f} {y + 3}v20" stroke="#222222" stroke-width="2"/>',
            f'<text x="{max(end, _LEFT + step * limit) + 8:.1f}" y="{y + 18}">{value:.2f} ×</text>',
        ]
    return "\n".join([*parts, "</svg>", ""])


def _times(bar: Bar) -> tuple[float, float]:
    """The value and the limit, with more in Penstock's favour."""
    return (bar.value, bar.limit) if bar.at_least else (1 / bar.value, 1 / bar.limit)


def write(
    page: Path,
    peer: str,
    comparisons: Sequence[Comparison],
    bars: Sequence[Bar],
    rounds: int,
    machine: Mapping[str, str],
) -> None:
    """Put table, picture and a note on the machine between the peer's marks in the page."""
    drawn = page.parent / "images" / f"peer-{peer}.svg"
    drawn.write_text(picture(f"Penstock and {peer}", bars), encoding="utf-8")
    kept = sum(bar.met for bar in bars)
    note = ", ".join(f"{name} {value}" for name, value in machine.items())
    text = "\n".join(
        [
            table(comparisons, bars),
            "",
            f"![{kept} of {len(bars)} promises are kept](images/{drawn.name})",
            "",
            f"Measured on {datetime.now(UTC):%Y-%m-%d}, medians of {rounds} rounds; {note}.",
        ]
    )
    begin, end = f"<!-- {peer} -->\n", f"<!-- /{peer} -->"
    head, found, rest = page.read_text(encoding="utf-8").partition(begin)
    if not found:
        raise SystemExit(f"{page} has no place for {peer}: {begin.strip()} {end}")
    page.write_text(f"{head}{begin}{text}\n{end}{rest.partition(end)[2]}", encoding="utf-8")
