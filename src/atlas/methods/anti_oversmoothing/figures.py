"""Figures of the paper: high frequencies through random stacks, for several ω."""

from __future__ import annotations

from typing import TYPE_CHECKING

from atlas.harness.plots import PALETTE, FigureData, figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@figure(
    "random-stacks",
    task="image-classification",
    paper="anti-oversmoothing",
    title="High frequencies through untrained stacks",
    caption=(
        "Ratio of what is not the mean to the mean, ‖HC‖/‖DC‖, over the layers of random stacks, for several ω of AttnScale; "
        "mean over seeds. Attention alone collapses to rounding error; a larger ω keeps more."
    ),
    alt="Line plots on logarithmic axes: the ratio falls to 1e-16 for attention alone, and stays higher for larger ω.",
)
def random_stacks(data: FigureData) -> Figure | None:
    """High-frequency ratio over depth for every stack of the study."""
    import matplotlib.pyplot as plt

    table = data.frames("history.csv")
    omegas = [str(column) for column in table if str(column).startswith("omega ")]
    if not omegas:
        return None
    rows = list(dict.fromkeys(table["method"]))
    drawing, panels = plt.subplots(1, len(rows), figsize=(3.2 * len(rows), 3.6), squeeze=False, layout="constrained")
    for axes, row in zip(panels[0], rows, strict=True):
        curves = table[table["method"].eq(row)].groupby("step")[omegas].mean()
        for omega, color in zip(omegas, PALETTE, strict=False):
            axes.plot(curves.index, curves[omega], color=color, label=omega.replace("omega", "ω ="))
        axes.set(title=row, xlabel="layer", yscale="log")
    panels[0][0].set_ylabel("‖HC‖ / ‖DC‖")
    handles, labels = panels[0][0].get_legend_handles_labels()
    drawing.legend(handles, labels, loc="outside lower center", ncols=len(omegas))
    return drawing
