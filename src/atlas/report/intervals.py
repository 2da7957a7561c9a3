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
    effect, asks = part.found, part.comparison
    if effect.count == 0:
        return Markup()
    low, high = region(asks)
    neutral = {"difference": [0.0], "ratio": [1.0], "value": []}[asks.compare]
    seeds = list(part.by_seed.values()) if len(part.by_seed) <= DOTS else []
    shown = [value for value in (effect.mean, effect.low, effect.high, low, high, *neutral, *seeds) if math.isfinite(value)]
    x_of = _axis(min(shown), max(shown))
    middle = HEIGHT / 2 - 3
    left, right = x_of(low), x_of(high)
    marks = [_rectangle(left, right)]
    marks += [_line("zero", x_of(value), 3, x_of(value), HEIGHT - 3) for value in neutral]
    marks += [_line("margin", x_of(edge), 1, x_of(edge), HEIGHT - 1) for edge in {low, high} if math.isfinite(edge)]
    if effect.bounded:
        marks.append(_line("range", x_of(effect.low), middle, x_of(effect.high), middle))
    marks += [f'<circle class="seed" cx="{x_of(value):.1f}" cy="{middle + 6:g}" r="2.2"/>' for value in seeds]
    marks.append(f'<circle class="effect" cx="{x_of(effect.mean):.1f}" cy="{middle:g}" r="4"/>')
    opening = f'<svg class="interval {part.verdict.replace(" ", "-")}" viewBox="0 0 {WIDTH:g} {HEIGHT:g}" aria-hidden="true">'
    return Markup(f"{opening}{''.join(marks)}</svg>")  # made of numbers alone


def _axis(low: float, high: float) -> Callable[[float], float]:
    """Map values to places; what is infinite is at the border."""
    span = (high - low) or abs(high) or 1.0
    low, high = low - 0.12 * span, high + 0.12 * span

    def x_of(value: float) -> float:
        if not math.isfinite(value):
            return 0.0 if value < 0 else WIDTH
        return PAD + (WIDTH - 2 * PAD) * (value - low) / (high - low)

    return x_of


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:g}" x2="{x2:.1f}" y2="{y2:g}"/>'


def _rectangle(left: float, right: float) -> str:
    return f'<rect class="region" x="{left:.1f}" y="1" width="{max(right - left, 1):.1f}" height="{HEIGHT - 2:g}"/>'
