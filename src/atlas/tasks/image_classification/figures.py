"""Figures of image classification: what happens to tokens over the depth, and training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from atlas.harness.plots import FigureData, figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TASK = "image-classification"


def _over_depth(axes: Axes, data: FigureData, metric: str) -> bool:
    """Plot one diagnostic over the layers, mean over seeds with their range; whether there was anything to plot."""
    table = data.frames("diagnostics.csv")
    if table.empty:
        return False
    table = table[table["metric"].eq(metric) & table["stage"].eq("trained")]
    for row, group in table.groupby("method", sort=False):
        layers = group.groupby("layer")["value"].agg(["mean", "min", "max"])
        color = data.colors[str(row)]
        axes.plot(layers.index, layers["mean"], color=color, label=data.titles[str(row)])
        axes.fill_between(layers.index, layers["min"], layers["max"], color=color, alpha=0.12, linewidth=0)
    return not table.empty


@figure(
    "depth",
    task=TASK,
    title="Over-smoothing through the depth",
    caption=(
        "Mean cosine between the patch tokens of an image, and the share of their energy that is not the mean, after every block "
        "of the trained models (0 is the input of the first). Bands span the seeds."
    ),
    alt="Two line plots over layers, one line per method: patch similarity and high-frequency share.",
)
def depth(data: FigureData) -> Figure | None:
    """Patch similarity and high-frequency share over layers, per method."""
    import matplotlib.pyplot as plt

    drawing, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.7), layout="constrained")
    curves = [_over_depth(left, data, "token_cosine"), _over_depth(right, data, "hf_energy_fraction")]
    if not all(curves):
        plt.close(drawing)
        return None
    left.set(xlabel="layer", ylabel="patch similarity")
    right.set(xlabel="layer", ylabel="high-frequency share", ylim=(0, None))
    handles, labels = left.get_legend_handles_labels()
    drawing.legend(handles, labels, loc="outside lower center", ncols=4)
    return drawing


LEVELS = (
    ("patch embeddings", ("token_cosine",), "similarity within a layer"),
    ("attention maps", ("attn_head_cosine",), ""),
    ("weights", tuple(f"weight_row_cosine_abs.{name}" for name in ("q", "k", "v", "proj", "fc1", "fc2")), ""),
    ("patch embeddings", ("token_cross_layer",), "similarity between layers"),
    ("attention maps", ("attn_cross_layer",), ""),
    ("weights", tuple(f"weight_cond_gap.{name}" for name in "qkv"), "condition gap"),
)
"""Panels of the assessment: level, metrics whose mean is drawn, label of the axis."""


@figure(
    "redundancy",
    task=TASK,
    title="Redundancy from head to toe",
    caption=(
        "Three levels, layer by layer. Above, mean cosine within a layer: between the patch embeddings of an image, between the "
        "attention maps of the heads, and between the rows of the weights (absolute, mean over six matrices). Below: cosine of a "
        "patch with its first embedding, of attention maps with those of the layer before, and the squared gap between the "
        "largest and the smallest eigenvalue of W Wᵀ (mean over queries, keys and values). Solid lines are trained models, mean "
        "over seeds; the dotted grey line is the initialisation that they share. No vector is compared with itself."
    ),
    alt="Six line plots over layers, one line per method: similarity of patches, of attention maps and of weights.",
)
def redundancy(data: FigureData) -> Figure | None:
    """Redundancy profiles at the three levels, before and after training, per method."""
    import matplotlib.pyplot as plt

    table = data.frames("diagnostics.csv")
    if table.empty:
        return None
    first = table["method"].iloc[0]
    drawing, grid = plt.subplots(2, 3, figsize=(10.5, 6.2), layout="constrained", sharex=True)
    for axes, (level, metrics, label) in zip(grid.flat, LEVELS, strict=True):
        chosen = table[table["metric"].isin(metrics)]
        before = chosen[chosen["stage"].eq("initial") & chosen["method"].eq(first)].groupby("layer")["value"].mean()
        axes.plot(before.index, before, ":", color="#7F7F7F", label="initialisation")
        for row, group in chosen[chosen["stage"].eq("trained")].groupby("method", sort=False):
            profile = group.groupby("layer")["value"].mean()
            axes.plot(profile.index, profile, color=data.colors[str(row)], label=data.titles[str(row)])
        axes.set(title=level, ylabel=label)
    for axes in grid[-1]:
        axes.set_xlabel("layer")
    handles, labels = grid.flat[0].get_legend_handles_labels()
    drawing.legend(handles, labels, loc="outside lower center", ncols=4)
    return drawing


@figure(
    "training",
    task=TASK,
    title="Training loss",
    caption="Loss on training batches, mean over seeds.",
    alt="Line plot of training loss against steps, one line per method.",
)
def training(data: FigureData) -> Figure | None:
    """Draw the training loss over steps, per method."""
    import matplotlib.pyplot as plt

    table = data.frames("history.csv")
    if table.empty or "loss" not in table:
        return None
    table = table.dropna(subset=["loss"])
    drawing, axes = plt.subplots(layout="constrained")
    for row, group in table.groupby("method", sort=False):
        curve = group.groupby("step")["loss"].mean()
        axes.plot(curve.index, curve, color=data.colors[str(row)], label=data.titles[str(row)], linewidth=1.4)
    axes.set(xlabel="step", ylabel="loss")
    drawing.legend(loc="outside lower center", ncols=4)
    return drawing
