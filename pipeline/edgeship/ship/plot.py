"""Line plots as inline SVG: points, two axes, no script and nothing to load."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT = 720.0, 240.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 62.0, 62.0, 26.0, 40.0
_BLUE, _RED = "#1f5fa8", "#b3541e"
_MOST = 1000  # points of a line; more are thinned out


@dataclass(frozen=True)
class Series:
    """Points (x, y) of one line, its name and the unit of y."""

    name: str
    unit: str
    points: Sequence[tuple[float, float]]


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers that cover [low, high], about so many; two at least."""
    if not (math.isfinite(low) and math.isfinite(high)) or high - low < 1e-12 * max(1.0, abs(high)):
        low, high = low - max(1.0, abs(low)) * 0.05, high + max(1.0, abs(high)) * 0.05
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= rough * 0.999)
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [n * step for n in range(first, max(last, first + 1) + 1)]


def line_plot(left: Series, right: Series | None, x_name: str, *, zero: bool = False) -> str:
    """An SVG of `left`, and `right` on an axis of its own; `zero`: the axis of `left` begins at zero."""
    if not left.points:
        return ""
    right = right if right and right.points else None
    xs = [x for series in (left, right) if series for x, _ in series.points]
    x_ticks = ticks(min(xs), max(xs), 6)
    parts = [f'<svg viewBox="0 0 {_WIDTH:g} {_HEIGHT:g}" role="img" xmlns="http://www.w3.org/2000/svg">']
    parts.append(f"<title>{escape(left.name)}{escape(f' and {right.name}') if right else ''}</title>")
    parts += [_label(_x(x, x_ticks), _HEIGHT - _BOTTOM + 16, _text(x), "middle", "#556270") for x in x_ticks]
    parts.append(_label(_WIDTH / 2, _HEIGHT - 6, x_name, "middle", "#556270"))
    parts += _axis(left, x_ticks, _BLUE, zero=zero, right=False)
    if right:
        parts += _axis(right, x_ticks, _RED, zero=False, right=True)
    return "\n".join([*parts, "</svg>"])


def _axis(series: Series, x_ticks: Sequence[float], colour: str, *, zero: bool, right: bool) -> list[str]:
    ys = [y for _, y in series.points]
    y_ticks = ticks(0.0 if zero else min(ys), max(ys), 4)
    edge = _WIDTH - _RIGHT if right else _LEFT
    parts = []
    for y in y_ticks:
        at = _y(y, y_ticks)
        if not right:
            parts.append(f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}" stroke="#e4e9ee"/>')
        parts.append(_label(edge + (8 if right else -8), at + 4, _text(y), "start" if right else "end", colour))
    title = f"{series.name}, {series.unit}"
    parts.append(_label(_WIDTH - _RIGHT if right else _LEFT, 14, title, "end" if right else "start", colour))
    stride = max(1, math.ceil(len(series.points) / _MOST))
    places = [(_x(x, x_ticks), _y(y, y_ticks)) for x, y in series.points[::stride]]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    dash = ' stroke-dasharray="5 4"' if right else ""
    parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>')
    if len(places) <= 60:
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in places]
    return parts


def _x(value: float, over: Sequence[float]) -> float:
    return _LEFT + (value - over[0]) / (over[-1] - over[0]) * (_WIDTH - _LEFT - _RIGHT)


def _y(value: float, over: Sequence[float]) -> float:
    return _HEIGHT - _BOTTOM - (value - over[0]) / (over[-1] - over[0]) * (_HEIGHT - _TOP - _BOTTOM)


def _text(value: float) -> str:
    return f"{value:.6g}"


def _label(x: float, y: float, text: str, anchor: str, colour: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="12" fill="{colour}">{escape(text)}</text>'
