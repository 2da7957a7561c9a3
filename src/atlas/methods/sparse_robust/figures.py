"""Figures of the paper: the gap against density, where the weights are, and how the density moves."""

from __future__ import annotations

from typing import TYPE_CHECKING

from atlas.harness.plots import FigureData, figure
from atlas.tasks.adversarial_robustness.figures import LEGEND_COLUMNS, logarithmic, spread

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TASK, PAPER = "adversarial-robustness", "sparse-robust"
TURNED = 8
"""Number of layers above which their names stand upright."""


@figure(
    "gap-density",
    task=TASK,
    paper=PAPER,
    title="Gap and overfitting against size",
    caption=(
        "Robust generalization gap (robust accuracy on training minus test images at the last epoch) and robust overfitting "
        "(best minus last on test images) against the number of weights, one point per seed and one larger point for their mean. "
        "Rows of nearly equal size are drawn side by side."
    ),
    alt="Two scatter plots against the number of weights: the robust generalization gap and robust overfitting, by method.",
)
def gap_density(data: FigureData) -> Figure | None:
    """Gap and overfitting against the number of weights, per method."""
    import matplotlib.pyplot as plt

    table = data.metrics()
    if table.empty or "robust_gap" not in table:
        return None
    drawing, axes = plt.subplots(1, 2, figsize=(9.0, 4.4), layout="constrained")
    panels = (("robust_gap", "gap (points)"), ("robust_overfitting", "overfitting (points)"))
    for panel, (metric, label) in zip(axes, panels, strict=True):
        panel.axhline(0, color="#7F7F7F", linewidth=0.8)
        means = table.groupby("method", sort=False)["parameters"].mean()
        for row, x in spread(dict(zip(map(str, means.index), means.tolist(), strict=True))).items():
            values, color = 100 * table[table["method"].eq(row)][metric], data.colors[row]
            panel.plot([x] * len(values), values, ".", color=color, alpha=0.5, markersize=5)
            panel.plot(x, values.mean(), "o", color=color, markersize=8, label=data.titles[row])
        panel.set_ylabel(label)
        logarithmic(panel, "weights")
    handles, labels = axes[0].get_legend_handles_labels()
    drawing.legend(handles, labels, loc="outside lower center", ncols=LEGEND_COLUMNS)
    return drawing


@figure(
    "layer-densities",
    task=TASK,
    paper=PAPER,
    title="Where the weights are",
    caption="Share of each layer's weights that exist in the last network, from the input to the output; mean over seeds.",
    alt="Dot plot over layers, one colour per sparse method: the density of each layer.",
)
def layer_densities(data: FigureData) -> Figure | None:
    """Density of every layer, per sparse method."""
    import matplotlib.pyplot as plt

    table = data.frames("layers.csv")
    if table.empty:
        return None
    sparse = [str(row) for row, group in table.groupby("method", sort=False) if (group["density"] < 1).any()]
    if not sparse:
        return None
    layers = list(dict.fromkeys(table[table["method"].isin(sparse)]["layer"]))
    drawing, axes = plt.subplots(figsize=(max(8.0, 0.45 * len(layers)), 4.4), layout="constrained")
    for index, row in enumerate(sparse):
        means = table[table["method"].eq(row)].groupby("layer")["density"].mean().reindex(layers)
        shift = 0.6 * ((index + 0.5) / len(sparse) - 0.5)
        axes.plot(
            [x + shift for x in range(len(layers))], means, "o", color=data.colors[row], label=data.titles[row], markersize=5
        )
    axes.set(ylabel="density", ylim=(0, None))
    turned = len(layers) > TURNED
    axes.set_xticks(range(len(layers)), layers, rotation=90 if turned else 0, fontsize=8)
    drawing.legend(loc="outside lower center", ncols=LEGEND_COLUMNS)
    return drawing


@figure(
    "density-time",
    task=TASK,
    paper=PAPER,
    title="How the density moves",
    caption=(
        "Density after every update of the topology, and the share of the weights that were exchanged there; mean over seeds. "
        "Flying Bird keeps its density; Flying Bird+ lowers or raises it from its first epoch of action on."
    ),
    alt="Two line plots over training steps for dynamic methods: density, and share of exchanged weights.",
)
def density_time(data: FigureData) -> Figure | None:
    """Density and exchanged weights over the updates, per dynamic method."""
    import matplotlib.pyplot as plt

    table = data.frames("topology.csv")
    if table.empty:
        return None
    sizes = data.frames("layers.csv").drop_duplicates(["method", "layer"]).groupby("method")["weights"].sum()
    drawing, (left, right) = plt.subplots(1, 2, figsize=(9.0, 4.0), layout="constrained")
    for row, group in table.groupby("method", sort=False):
        means = group.groupby("step")[["density", "grown"]].mean()
        color, title = data.colors[str(row)], data.titles[str(row)]
        left.plot(means.index, means["density"], color=color, label=title)
        right.plot(means.index, 100 * means["grown"] / (means["density"] * sizes[row]), color=color)
    left.set(xlabel="step", ylabel="density", ylim=(0, None))
    right.set(xlabel="step", ylabel="weights exchanged (%)", ylim=(0, None))
    drawing.legend(loc="outside lower center", ncols=LEGEND_COLUMNS)
    return drawing
