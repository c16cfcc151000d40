"""Pictures as SVG text, in the colours of the page that they stand on (``document``), so they follow light and dark.

Colours are never the only carrier: bars have their numbers, cells their counts, rejected tokens a cross.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Bar", "bars", "curve", "heat_map", "timeline"]

WIDTH = 760
_LEFT = 170


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar: its label, value, the text at its end, and an interval if there is one."""

    label: str
    value: float
    text: str
    interval: tuple[float, float] | None = None


def bars(title: str, rows: Sequence[Bar], *, mark: float | None = None) -> str:
    """Horizontal bars from 0, with whiskers for intervals and a dashed line at ``mark``."""
    top = max([*(row.value for row in rows), *(row.interval[1] for row in rows if row.interval), mark or 0.0, 1e-9])
    room = WIDTH - _LEFT - 130
    height = 28 * len(rows) + 12
    parts = []
    if mark is not None:
        x = _LEFT + room * mark / top
        parts.append(_line(x, 0, x, height, "stroke:var(--two);stroke-width:1.5;stroke-dasharray:5 4"))
    for place, row in enumerate(rows):
        y = 8 + 28 * place
        length = room * row.value / top
        parts.append(_text(_LEFT - 10, y + 14, _short(row.label), anchor="end"))
        parts.append(f'<rect x="{_LEFT}" y="{y}" width="{length:.1f}" height="19" style="fill:var(--one)"/>')
        end = length
        if row.interval is not None:
            low, high = (_LEFT + room * value / top for value in row.interval)
            parts.append(_line(low, y + 9.5, high, y + 9.5, "stroke:var(--ink);stroke-width:1.6"))
            parts += [_line(x, y + 5, x, y + 14, "stroke:var(--ink);stroke-width:1.6") for x in (low, high)]
            end = max(length, high - _LEFT)
        parts.append(_text(_LEFT + end + 8, y + 14, row.text))
    return _svg(title, WIDTH, height, parts)


def curve(title: str, points: Mapping[float, float], *, x_name: str, y_name: str) -> str:
    """Measured points joined by lines; the y axis begins at 0."""
    width, height, left, top_edge, bottom = WIDTH, 300, 60, 28, 46
    right, top = max(points), max(points.values()) * 1.08
    known = sorted(points.items())

    def at(x: float, y: float) -> tuple[float, float]:
        return left + (width - left - 30) * x / right, height - bottom - (height - bottom - top_edge) * y / top

    parts = []
    for value in _ticks(top):
        y = at(0, value)[1]
        parts.append(f'<line class="grid" x1="{left}" y1="{y:.1f}" x2="{width - 30}" y2="{y:.1f}"/>')
        parts.append(_text(left - 8, y + 4, f"{value:g}", anchor="end", soft=True))
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*point) for point in known))
    parts.append(f'<polyline points="{path}" style="fill:none;stroke:var(--one);stroke-width:2"/>')
    for x_value, y_value in known:
        x, y = at(x_value, y_value)
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" style="fill:var(--one)"/>')
        parts.append(_text(x, height - bottom + 18, f"{x_value:g}", anchor="middle", soft=True))
    parts.append(_text(width / 2, height - 6, x_name, anchor="middle"))
    parts.append(_text(8, 12, y_name))
    return _svg(title, width, height, parts)


def timeline(title: str, rounds: Sequence[tuple[int, int]]) -> str:
    """Rounds side by side: accepted draft tokens filled, rejected ones crossed out, the bonus token hollow on top."""
    size, gap = 17, 5
    tallest = max((drafted for drafted, _ in rounds), default=0) + 1
    height = tallest * size + 34
    parts = []
    for place, (drafted, accepted) in enumerate(rounds):
        x = 10 + place * (size + gap + 4)
        for token in range(drafted):
            y = height - 26 - (token + 1) * size
            colour = "--three" if token < accepted else "--two"
            parts.append(f'<rect x="{x}" y="{y}" width="{size}" height="{size - 2}" style="fill:var({colour})"/>')
            if token >= accepted:
                ends = ((x + 4, y + 3, x + size - 4, y + size - 5), (x + 4, y + size - 5, x + size - 4, y + 3))
                parts += [_line(*end, "stroke:var(--back);stroke-width:2") for end in ends]
        y = height - 26 - (drafted + 1) * size
        frame = "fill:none;stroke:var(--one);stroke-width:2"
        parts.append(f'<rect x="{x + 1}" y="{y + 1}" width="{size - 2}" height="{size - 4}" style="{frame}"/>')
        parts.append(_text(x + size / 2, height - 8, str(accepted + 1), anchor="middle", soft=True))
    return _svg(title, max(WIDTH, 20 + len(rounds) * (size + gap + 4)), height, parts)


def heat_map(
    title: str, columns: Sequence[str], rows: Sequence[str], cells: Sequence[Sequence[tuple[int, int]]]
) -> str:
    """``cells[row][column]`` is (hits, trials): filled by the share of hits, with the counts written in."""
    width, size = 74, 34
    parts = [_text(_LEFT - 100 + width * (i + 0.5), 16, name, anchor="middle") for i, name in enumerate(columns)]
    for row, name in enumerate(rows):
        y = 24 + row * size
        parts.append(_text(_LEFT - 110, y + 22, name, anchor="end"))
        for column, (hits, trials) in enumerate(cells[row]):
            x, share = _LEFT - 100 + column * width, hits / trials
            paint = f"fill:var(--three);fill-opacity:{share * 0.75:.2f};stroke:var(--line)"
            parts.append(f'<rect x="{x}" y="{y}" width="{width - 3}" height="{size - 3}" style="{paint}"/>')
            parts.append(_text(x + width / 2, y + 21, f"{hits}/{trials}", anchor="middle"))
    return _svg(title, _LEFT + width * len(columns), 30 + size * len(rows), parts)


def _ticks(top: float) -> list[float]:
    """Round numbers from 0 to ``top``: three to six of them."""
    power = 10.0 ** math.floor(math.log10(top / 3))
    step = next(power * factor for factor in (10, 5, 2, 1) if top / (power * factor) >= 2.5)
    return [round(step * i, 12) for i in range(int(top / step) + 1)]


def _short(label: str, longest: int = 18) -> str:
    """The label, its middle left out where it would not fit."""
    return label if len(label) <= longest else f"{label[: longest // 2 - 1]}…{label[-(longest // 2) :]}"


def _svg(title: str, width: float, height: float, parts: Sequence[str]) -> str:
    name = html.escape(title)
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}" role="img" '
        f'aria-label="{name}">' + "".join(parts) + "</svg>"
    )


def _text(x: float, y: float, text: str, *, anchor: str = "start", soft: bool = False) -> str:
    kind = ' class="soft"' if soft else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{kind}>{html.escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" style="{style}"/>'
