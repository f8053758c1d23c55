"""Plots as SVG, written by hand: bars side by side, and lines over a logarithmic axis."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

__all__ = ["draw_bars", "draw_lines"]

_COLOURS = (
    *("#c2410c", "#f59e0b", "#1d4ed8", "#0f766e", "#6d28d9"),
    *("#be185d", "#57534e", "#a3a3a3", "#4d7c0f", "#111827"),
)
_WIDTH, _LEFT, _RIGHT, _ROW = 860, 190, 90, 17


def draw_bars(file: Path, title: str, unit: str, groups: Mapping[str, Mapping[str, float]]) -> None:
    """A block of bars for each group, a bar for each name; the axis is logarithmic."""
    names = list(dict.fromkeys(name for values in groups.values() for name in values))
    numbers = [value for values in groups.values() for value in values.values() if value > 0]
    low, high = min(numbers) / 2, max(numbers)
    parts: list[str] = []
    y = 48
    for group, values in groups.items():
        parts.append(_text(12, y + 12, group, bold=True))
        y += _ROW + 4
        for name, value in values.items():
            share = math.log(max(value, low) / low) / math.log(high / low)
            width = share * (_WIDTH - _LEFT - _RIGHT)
            colour = _COLOURS[names.index(name) % len(_COLOURS)]
            parts.append(_text(_LEFT - 8, y + 12, name, anchor="end"))
            parts.append(
                f'<rect x="{_LEFT}" y="{y + 1}" width="{width:.1f}" height="{_ROW - 4}" '
                f'fill="{colour}"/>'
            )
            parts.append(_text(_LEFT + width + 6, y + 12, f"{value:.3g} {unit}"))
            y += _ROW
        y += 10
    _write(file, title + " (logarithmic)", parts, y)


def draw_lines(
    file: Path, title: str, unit: str, lines: Mapping[str, Sequence[tuple[float, float]]]
) -> None:
    """A line for each name over points (x, y): x is logarithmic, y starts at zero."""
    points = [point for line in lines.values() for point in line]
    first, last = min(x for x, _ in points), max(x for x, _ in points)
    top = max(y for _, y in points) * 1.1
    height, bottom = 300, 360

    def place(x: float, y: float) -> tuple[float, float]:
        along = math.log(x / first) / math.log(last / first)
        return 70 + along * (_WIDTH - 330), bottom - y / top * height

    parts = []
    for step in range(5):
        y = top * step / 4
        _, py = place(first, y)
        parts.append(
            f'<line x1="70" x2="{_WIDTH - 260}" y1="{py:.1f}" y2="{py:.1f}" stroke="#e5e5e5"/>'
        )
        parts.append(_text(62, py + 4, f"{y:.3g}", anchor="end"))
    for x in sorted({x for x, _ in points}):
        parts.append(_text(place(x, 0)[0], bottom + 18, f"{x:,.0f}", anchor="middle"))
    for index, (name, line) in enumerate(lines.items()):
        colour = _COLOURS[index % len(_COLOURS)]
        path = " ".join("{:.1f},{:.1f}".format(*place(x, y)) for x, y in line)
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2.5"/>'
        )
        y = 64 + index * 18
        parts.append(
            f'<rect x="{_WIDTH - 245}" y="{y - 9}" width="12" height="10" fill="{colour}"/>'
        )
        parts.append(_text(_WIDTH - 226, y, name))
    _write(file, f"{title}, {unit}", parts, bottom + 34)


def _text(x: float, y: float, text: str, *, anchor: str = "start", bold: bool = False) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{weight}>{escape(text)}</text>'


def _write(file: Path, title: str, parts: Sequence[str], height: float) -> None:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height:.0f}" '
        'font-family="sans-serif" font-size="12" role="img">'
    )
    ground = f'<rect width="{_WIDTH}" height="{height:.0f}" fill="#ffffff"/>'
    heading = f'<text x="12" y="26" font-size="16" font-weight="bold">{escape(title)}</text>'
    file.write_text("\n".join([head, ground, heading, *parts, "</svg>", ""]), encoding="utf-8")
