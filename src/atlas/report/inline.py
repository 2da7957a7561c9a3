"""Figures inside the page: an SVG becomes part of the document, and takes its colours from the page's theme.

A figure that holds a raster image (a rendering, a heat map) keeps its own colours on a white card.
"""

from __future__ import annotations

import base64
import re

from atlas.harness.plots import PALETTE
from atlas.report.style import INK, LINE, PAPER, QUIET

# Colours of the style and the palette, to the variables of the style sheet that stand for them in light and dark.
VARIABLES = {INK: "--ink", QUIET: "--quiet", LINE: "--line", PAPER: "--paper"}
VARIABLES |= {color.lower(): f"--series-{number}" for number, color in enumerate(PALETTE)}
COLOR = re.compile("|".join(map(re.escape, VARIABLES)), re.IGNORECASE)
IDENTIFIER = re.compile(r'(\bid="|url\(#|href="#)')
COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
UNTHEMED_STYLE = re.compile(r"<style.*?</style>", re.DOTALL)
METADATA = re.compile(r"<metadata>.*?</metadata>", re.DOTALL)
WIDE = 470.0  # points
ACTIVE = re.compile(r"<script|<foreignObject|\bon\w+\s*=|javascript:", re.IGNORECASE)


def inline(svg: str, prefix: str, label: str) -> str:
    """Return the HTML of a figure.

    Parameters
    ----------
    svg : str
        Content of an SVG file.
    prefix : str
        Set before every identifier, which must be unique in the page.
    label : str
        What the figure shows, for readers who cannot see it; already escaped for an attribute.
    """
    if "<image" in svg or ACTIVE.search(svg):
        source = base64.b64encode(svg.encode()).decode()
        return f'<img class="card" src="data:image/svg+xml;base64,{source}" alt="{label}" loading="lazy">'
    body = svg[svg.index("<svg") :]
    for pattern in (COMMENT, UNTHEMED_STYLE, METADATA):
        body = pattern.sub("", body)
    body = IDENTIFIER.sub(lambda match: match[1] + prefix, body)
    body = COLOR.sub(lambda match: f"var({VARIABLES[match[0].lower()]})", body)
    width, height = size(svg)
    opening = f'<svg role="img" aria-label="{label}" viewBox="0 0 {width:g} {height:g}" style="max-width:{width / 12:.1f}rem">'
    # Matplotlib's own style sheet, without which lines get corners and butts.
    body = f'<g stroke-linejoin="round" stroke-linecap="butt">{body[body.index(">") + 1 :].replace("</svg>", "</g></svg>")}'
    return opening + "\n".join(line for line in body.splitlines() if line.strip())


def data_address(kind: str, text: str) -> str:
    """A file as an address inside the page, for links that download it."""
    return f"data:{kind};charset=utf-8;base64,{base64.b64encode(text.encode()).decode()}"


def is_wide(svg: str) -> bool:
    """Whether a figure has several panels side by side, and would not be readable in half a page."""
    return size(svg)[0] > WIDE


def size(svg: str) -> tuple[float, float]:
    """Width and height of an SVG's coordinate system."""
    box = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)
    return (float(box[1]), float(box[2])) if box else (504.0, 280.0)
