"""A film as one SVG: every column is a strip of its frames behind a window, which a style sheet moves on frame by frame.

It plays wherever an SVG is shown as a picture, and stands still on paper and for readers who ask for less motion.
"""

from __future__ import annotations

import base64
import io
import textwrap
from html import escape

import numpy as np

from atlas.harness.plots import Film
from atlas.report.style import FONTS, INK

COLUMN, GAP, LINE, LETTERS = 160.0, 6.0, 14.0, 24
"""Points: width of a column, between columns, of a line of text; and letters of a title that fit on a line."""


def film_svg(film: Film) -> str:
    """Return the SVG of a film, the same bytes for the same pictures."""
    titles = {title: textwrap.wrap(title, LETTERS) for title in film.columns}
    top = LINE * max(len(lines) for lines in titles.values()) + GAP
    height, width = next(iter(film.columns.values())).shape[-3:-1]
    tall, scale = COLUMN * height / width, COLUMN / width
    frames = max(len(pictures) for pictures in film.columns.values() if pictures.ndim == 4)
    parts = []
    for column, (title, pictures) in enumerate(film.columns.items()):
        left = column * (COLUMN + GAP)
        parts += [
            f'<text x="{left + COLUMN / 2:g}" y="{LINE * (line + 1):g}">{escape(text)}</text>'
            for line, text in enumerate(titles[title])
        ]
        strip, name = (np.concatenate(list(pictures), axis=1), "strip") if pictures.ndim == 4 else (pictures, "still")
        parts.append(
            f'<svg x="{left:g}" y="{top:g}" width="{COLUMN:g}" height="{tall:.2f}">'
            f'<image class="{name}" width="{strip.shape[1] * scale:.2f}" height="{tall:.2f}" '
            f'preserveAspectRatio="none" href="data:image/png;base64,{png(strip)}"/></svg>'
        )
    wide, high = len(titles) * (COLUMN + GAP) - GAP, top + tall
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{wide:g}pt" height="{high:.2f}pt" viewBox="0 0 {wide:g} {high:.2f}">\n'
        f"<style>text {{ font: 10px {FONTS}; fill: {INK}; text-anchor: middle }}\n"
        f".strip {{ animation: film {frames * film.pause}ms steps({frames}) infinite }}\n"
        f"@keyframes film {{ to {{ transform: translateX(-{frames * COLUMN:g}px) }} }}\n"
        "@media print, (prefers-reduced-motion: reduce) { .strip { animation: none } }</style>\n"
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def png(picture: np.ndarray) -> str:
    """A picture of uint8, (height, width, 3), as a PNG in base64; with a palette where it has few colours."""
    from PIL import Image

    image = Image.fromarray(picture)
    if image.getcolors(256) is not None:
        image = image.quantize(256, dither=Image.Dither.NONE)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()
