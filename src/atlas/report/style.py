"""One style for every figure: quiet axes, direct colours, the page's own type.

Text stays text (it can be searched, read aloud and set in the reader's font); positions are computed with DejaVu Sans, which is
wider than the fonts that stand in for it, so that nothing collides.
"""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, QUIET, LINE, PAPER = "#30343b", "#8a8f98", "#e6e8eb", "#ffffff"
FONTS = "-apple-system, 'Segoe UI', Inter, Roboto, 'Helvetica Neue', 'Liberation Sans', Arial, 'DejaVu Sans', sans-serif"

STYLE: Any = {
    "figure.figsize": (6.0, 3.6),
    "figure.facecolor": PAPER,
    "axes.facecolor": PAPER,
    "axes.edgecolor": QUIET,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlesize": 10.5,
    "axes.labelsize": 10,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.formatter.use_mathtext": False,
    "grid.color": LINE,
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "font.family": ["DejaVu Sans"],
    "image.cmap": "cividis",
    "svg.fonttype": "none",
    "svg.hashsalt": "atlas",
}

LONG = re.compile(r"-?\d+\.\d{3,}")
PATHS = re.compile(r'(?<= d=")[^"]*|(?<= x=")[^"]*|(?<= y=")[^"]*|(?<=translate\()[^)]*')


def svg(figure: Figure) -> str:
    """Render a figure as SVG text, the same on every machine, and close it.

    It carries no date, names the page's fonts, and rounds coordinates to a hundredth of a point.
    """
    import matplotlib.pyplot as plt

    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None, "Creator": None})
    plt.close(figure)
    text = PATHS.sub(lambda path: LONG.sub(_rounded, path[0]), buffer.getvalue())
    text = text.replace("'DejaVu Sans'", FONTS)
    return "\n".join(line.rstrip() for line in text.splitlines()) + "\n"


def _rounded(number: re.Match[str]) -> str:
    text = f"{float(number[0]):.2f}".rstrip("0").rstrip(".")
    return "0" if text in ("-0", "") else text
