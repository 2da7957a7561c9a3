"""Figures of the paper: high frequencies through random stacks, for several ω."""

from __future__ import annotations

from typing import TYPE_CHECKING

from atlas.harness.plots import FigureData, figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLES = {"attention": ":", "residual": "-", "residual-mlp": "--"}


@figure(
    "random-stacks",
    task="image-classification",
    paper="anti-oversmoothing",
    title="High frequencies through untrained stacks",
    caption=(
        "Ratio of what is not the mean to the mean, ‖HC‖/‖DC‖, over the layers of random stacks; mean over seeds. Attention alone "
        "(dotted) collapses to rounding error; with residual connections (solid) a larger ω keeps more."
    ),
    alt="Line plot on a logarithmic axis: the ratio falls to 1e-16 for attention alone, and stays higher for larger ω with residuals.",
)
def random_stacks(data: FigureData) -> Figure | None:
    """High-frequency ratio over depth for every stack of the study."""
    import matplotlib.pyplot as plt

    table = data.frames("history.csv")
    if table.empty or "hf_dc_ratio" not in table:
        return None
    settings = {run.method: run.settings.get("random-stack", {}) for run in data.runs}
    drawing, axes = plt.subplots(layout="constrained")
    for row, group in table.groupby("method", sort=False):
        chosen = settings[str(row)]
        curve = group.groupby("step")["hf_dc_ratio"].mean()
        label = f"{chosen.get('stack')}, ω = {chosen.get('omega'):g}"
        style = STYLES[chosen.get("stack", "residual")]
        axes.plot(curve.index, curve, style, color=data.colors[str(row)], label=label)
    axes.set(xlabel="layer", ylabel="‖HC‖ / ‖DC‖", yscale="log")
    drawing.legend(loc="outside lower center", ncols=3)
    return drawing
