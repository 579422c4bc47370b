"""Charts as SVG, drawn for a width of 400 units: readable on a telephone, and colours come from the page's style.

All return Markup; texts that come from the history are escaped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup

WIDTH, LEFT, BOTTOM = 400, 38, 18  # units; for the numbers at the left and the labels below

Shares = Sequence[tuple[str, float]]  # (class of the colour, part of the whole)


def frame(height: float, content: str, title: str, width: float = WIDTH) -> Markup:
    """Return a drawing of that size; title: what a screen reader says."""
    opening = Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">').format(width, height, title)
    return opening + Markup(content) + Markup("</svg>")


def rectangle(x: float, y: float, width: float, height: float, colour: str, title: str = "") -> str:
    inside = Markup("<title>{}</title>").format(title) if title else ""
    place = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
    return f'<rect class="{colour}" {place}>{inside}</rect>'


def text(x: float, y: float, words: object, anchor: str = "middle") -> str:
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(x, y, anchor, words)


def line(x1: float, y1: float, x2: float, y2: float, colour: str = "grid") -> str:
    return f'<line class="{colour}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def short(number: float) -> str:
    """Return a number for an axis: 1200 as 1.2k."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}"


def ticks(highest: float, number: int = 3) -> list[float]:
    """Return round numbers from 0 to at least `highest`, about `number` steps."""
    if highest <= 0:
        return [0, 1]
    raw = highest / number
    size = 10 ** math.floor(math.log10(raw))
    step = next(size * times for times in (1, 2, 5, 10) if size * times >= raw * (1 - 1e-9))
    return [step * index for index in range(math.ceil(highest / step - 1e-9) + 1)]


def columns(
    labels: Sequence[str], series: Sequence[tuple[str, Sequence[float]]], title: str, height: int = 150
) -> Markup:
    """Return columns, one for each label, of the values of the series on top of each other. series: (class of its
    colour, values)."""
    totals = [sum(values) for values in zip(*(values for _, values in series), strict=True)]
    scale = ticks(max(totals, default=0))
    top, base = 8, height - BOTTOM
    unit, step = (base - top) / scale[-1], (WIDTH - LEFT) / max(len(labels), 1)
    parts = [line(LEFT, base - value * unit, WIDTH, base - value * unit) for value in scale]
    parts += [text(LEFT - 5, base - value * unit + 4, short(value), "end") for value in scale]
    every = max(1, math.ceil(len(labels) / 7))
    for index, label in enumerate(labels):
        x, y = LEFT + index * step, float(base)
        for colour, values in series:
            y -= values[index] * unit
            if values[index]:
                title_of_one = f"{label}: {values[index]:,}"
                parts.append(rectangle(x + 0.08 * step, y, 0.84 * step, values[index] * unit, colour, title_of_one))
        if index % every == 0:
            parts.append(text(x + step / 2, height - 4, label))
    return frame(height, "".join(parts), title)


def curves(series: Sequence[tuple[str, Sequence[tuple[float, float]]]], title: str, height: int = 170) -> Markup:
    """Return curves over a common axis; series: (class of its colour, points), the points from left to right."""
    points = [point for _, of_one in series for point in of_one]
    right = max((x for x, _ in points), default=1) or 1
    scale = ticks(max((y for _, y in points), default=1))
    top, base = 8, height - BOTTOM
    unit = (base - top) / scale[-1]

    def place(x: float, y: float) -> tuple[float, float]:
        return LEFT + (WIDTH - LEFT - 12) * x / right, base - y * unit

    parts = [line(LEFT, base - value * unit, WIDTH, base - value * unit) for value in scale]
    parts += [text(LEFT - 5, base - value * unit + 4, short(value), "end") for value in scale]
    parts += [text(place(x, 0)[0], height - 4, short(x)) for x in ticks(right, 4) if x <= right]
    for colour, of_one in series:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in of_one))
        parts.append(f'<polyline class="curve {colour}" points="{path}"/>')
        if len(of_one) == 1:
            x, y = place(*of_one[0])
            parts.append(f'<circle class="{colour}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>')
    return frame(height, "".join(parts), title)


def bar(parts: Shares, title: str) -> Markup:
    """Return a bar as wide as its place, divided by the shares."""
    x, pieces = 0.0, []
    for colour, share in parts:
        pieces.append(rectangle(100 * x, 0, 100 * share, 10, colour))
        x += share
    opening = Markup('<svg class="bar" viewBox="0 0 100 10" preserveAspectRatio="none" role="img" aria-label="{}">')
    ground = Markup(rectangle(0, 0, 100, 10, "ground"))
    return opening.format(title) + ground + Markup("".join(pieces)) + Markup("</svg>")


def interval(low: float, mean: float, high: float, title: str) -> Markup:
    """Return an interval beside zero, with its mean; its ends are written below."""
    reach, middle = 1.15 * max(abs(low), abs(high), 1e-9), 120

    def place(value: float) -> float:
        return middle + value / reach * (middle - 10)

    parts = [line(0, 28, 2 * middle, 28), line(middle, 16, middle, 40, "zero"), text(middle, 11, "0")]
    parts.append(rectangle(place(low), 24, place(high) - place(low), 8, "c0 faint"))
    parts.append(f'<circle class="c0" cx="{place(mean):.1f}" cy="28" r="6"/>')
    parts.append(text((place(low) + place(high)) / 2, 54, f"{low:+.3f} … {high:+.3f}"))
    return frame(60, "".join(parts), title, 2 * middle)


def distances(band: float, marks: Shares, title: str) -> Markup:
    """Return marks on a scale from 0, the same as the real ones, to 1; band: how far two halves of these are apart."""
    width = 160

    def place(value: float) -> float:
        return 6 + (width - 12) * min(max(value, 0), 1)

    parts = [line(6, 8, width - 6, 8), rectangle(6, 2, place(band) - 6, 12, "ground")]
    parts += [f'<circle class="{colour}" cx="{place(value):.1f}" cy="8" r="5"/>' for colour, value in marks]
    return frame(16, "".join(parts), title, width)
