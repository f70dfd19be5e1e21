"""Curves as SVG, so that a page needs neither a network nor a plotting library."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 380, 230, 56, 24, 26, 34
_COLOURS = ("#1f6fb4", "#d95f0e", "#2b8a3e", "#8e44ad", "#b8860b", "#546e7a")
_POINTS = 500  # of a curve at most
_DECADES = 20.0  # ratio of the largest to the smallest value from which the axis is logarithmic

Curve = Sequence[tuple[float, float]]


def plot(
    title: str, curves: Mapping[str, Curve], *, marked: float | None = None, decades: bool = False
) -> str:
    """An SVG of curves over one pair of axes; "" where there is no point at all.

    Args:
      curves: points (step, value) in order of the steps, by name. Values that are not finite are
        left out.
      marked: a step with a dashed line, that of the best checkpoint; None: none.
      decades: the axis of the values is logarithmic where they are positive and span much.
    """
    kept = {name: _finite(points) for name, points in curves.items()}
    kept = {name: points for name, points in kept.items() if points}
    if not kept:
        return ""
    xs = [x for points in kept.values() for x, _ in points]
    ys = [y for points in kept.values() for _, y in points]
    is_log = decades and min(ys) > 0 and max(ys) / min(ys) > _DECADES
    scale = math.log10 if is_log else float
    across, (low, high) = _range(min(xs), max(xs)), _range(scale(min(ys)), scale(max(ys)))

    def x_of(x):
        return _LEFT + (x - across[0]) / (across[1] - across[0]) * (_WIDTH - _LEFT - _RIGHT)

    def y_of(y):
        return _HEIGHT - _BOTTOM - (scale(y) - low) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)

    parts = [
        f"<svg viewBox='0 0 {_WIDTH} {_HEIGHT}' role='img' aria-label='{_escaped(title)}'>",
        f"<text class='title' x='{_LEFT}' y='15'>{_escaped(title)}</text>",
    ]
    for value in _decades(low, high) if is_log else _ticks(low, high):
        y, shown = y_of(value), f"{value:.4g}"
        parts.append(f"<path class='grid' d='M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}'/>")
        parts.append(f"<text x='{_LEFT - 6}' y='{y + 4:.1f}' text-anchor='end'>{shown}</text>")
    for value in _ticks(*across):
        x = x_of(value)
        parts.append(f"<text x='{x:.1f}' y='{_HEIGHT - 16}' text-anchor='middle'>{value:g}</text>")
    if isinstance(marked, (int, float)) and across[0] <= marked <= across[1]:
        parts.append(f"<path class='best' d='M{x_of(marked):.1f} {_TOP}V{_HEIGHT - _BOTTOM}'/>")
    for number, (name, points) in enumerate(kept.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        line = " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in _thinned(points))
        parts.append(
            f"<polyline fill='none' stroke='{colour}' points='{line}'>"
            f"<title>{_escaped(name)}</title></polyline>"
        )
        if len(points) < 30:
            parts += [
                f"<circle cx='{x_of(x):.1f}' cy='{y_of(y):.1f}' r='2.2' fill='{colour}'/>"
                for x, y in points
            ]
    parts.append("</svg>")
    return f"<figure class='plot'>{''.join(parts)}{_legend(kept)}</figure>"


def _legend(curves):
    if len(curves) < 2:
        return ""
    names = (
        f"<span style='color:{_COLOURS[i % len(_COLOURS)]}'>&#9632; {_escaped(name)}</span>"
        for i, name in enumerate(curves)
    )
    return f"<figcaption>{' '.join(names)}</figcaption>"


def _finite(points):
    return [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]


def _thinned(points):
    """A selection of evenly spread points, always with the last one."""
    every = -(-len(points) // _POINTS)
    return [*points[:-1:every], points[-1]]


def _range(low, high):
    """The span of an axis, never empty."""
    if high > low:
        return low, high
    room = abs(low) * 0.1 or 1.0
    return low - room, high + room


def _decades(low, high):
    """The powers of ten between 10^low and 10^high, with 2 and 5 times them where these are few."""
    units = (1.0,) if high - low > 3 else (1.0, 2.0, 5.0)
    powers = range(math.floor(low), math.ceil(high) + 1)
    every = -(-len(powers) // 6)
    found = [unit * 10.0**power for power in powers[::every] for unit in units]
    return [
        value for value in found if 10.0**low <= value * 1.0001 and value <= 10.0**high * 1.0001
    ]


def _ticks(low, high):
    """Three to six round numbers within a span."""
    raw = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * unit for unit in (1, 2, 2.5, 5, 10) if power * unit >= raw)
    first = math.ceil(low / step - 1e-9)
    found = [round(n * step, 12) for n in range(first, math.floor(high / step + 1e-9) + 1)]
    return found or [low, high]


def _escaped(text):
    return html.escape(text, quote=True)
