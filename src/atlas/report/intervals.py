"""A claim as a picture of one line: the interval and the seeds that were found, against the region that was asked for."""

from __future__ import annotations

import math
from collections.abc import Callable

from markupsafe import Markup

from atlas.report.verdicts import Part, region

WIDTH, HEIGHT, PAD = 160.0, 28.0, 7.0
DOTS = 50  # seeds beyond which dots would merge


def interval_picture(part: Part) -> Markup:
    """SVG of one comparison; empty where nothing was found. The numbers stand beside it, so it is hidden from readers of text."""
    found, asks = part.found, part.comparison
    if found.count == 0:
        return Markup()
    low, high = region(asks)
    neutral = {"difference": [0.0], "ratio": [1.0], "value": []}[asks.compare]
    seeds = list(part.by_seed.values()) if len(part.by_seed) <= DOTS else []
    shown = [value for value in (found.mean, found.low, found.high, low, high, *neutral, *seeds) if math.isfinite(value)]
    place = _axis(min(shown), max(shown))
    middle = HEIGHT / 2 - 3
    left, right = place(low), place(high)
    marks = [_rectangle(left, right)]
    marks += [_line("zero", place(value), 3, place(value), HEIGHT - 3) for value in neutral]
    marks += [_line("margin", place(edge), 1, place(edge), HEIGHT - 1) for edge in {low, high} if math.isfinite(edge)]
    if found.bounded:
        marks.append(_line("range", place(found.low), middle, place(found.high), middle))
    marks += [f'<circle class="seed" cx="{place(value):.1f}" cy="{middle + 6:g}" r="2.2"/>' for value in seeds]
    marks.append(f'<circle class="effect" cx="{place(found.mean):.1f}" cy="{middle:g}" r="4"/>')
    opening = f'<svg class="interval {part.verdict.replace(" ", "-")}" viewBox="0 0 {WIDTH:g} {HEIGHT:g}" aria-hidden="true">'
    return Markup(f"{opening}{''.join(marks)}</svg>")  # made of numbers alone


def _axis(low: float, high: float) -> Callable[[float], float]:
    """Map values to places; what is infinite is at the border."""
    span = (high - low) or abs(high) or 1.0
    low, high = low - 0.12 * span, high + 0.12 * span

    def place(value: float) -> float:
        if not math.isfinite(value):
            return 0.0 if value < 0 else WIDTH
        return PAD + (WIDTH - 2 * PAD) * (value - low) / (high - low)

    return place


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:g}" x2="{x2:.1f}" y2="{y2:g}"/>'


def _rectangle(left: float, right: float) -> str:
    return f'<rect class="region" x="{left:.1f}" y="1" width="{max(right - left, 1):.1f}" height="{HEIGHT - 2:g}"/>'
