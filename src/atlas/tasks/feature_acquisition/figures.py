"""Figures of feature acquisition: the front of accuracy against cost, and training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from atlas.harness.plots import FigureData, figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TASK = "feature-acquisition"
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*", "p", "h")


@figure(
    "front",
    task=TASK,
    title="Accuracy against features acquired",
    caption=(
        "Accuracy on the test sequences against the share of features acquired after the first step. Small marks are seeds; "
        "lines join the means over seeds of a sweep over λ, a large mark is the λ of the table. Up and to the left is better."
    ),
    alt="Scatter plot of accuracy against the share of features acquired, one colour and mark per method, lines over λ.",
)
def front(data: FigureData) -> Figure | None:
    """Draw accuracy against cost of every operating point of every row."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import PercentFormatter

    table = data.frames("front.csv")
    if table.empty:
        return None
    drawing, axes = plt.subplots(figsize=(8, 4.6), layout="constrained")
    for index, (row, group) in enumerate(table.groupby("method", sort=False)):
        name = str(row)
        color, marker = data.colors[name], MARKERS[index % len(MARKERS)]
        axes.scatter(group["frac_steady"], group["accuracy"], s=14, color=color, marker=marker, alpha=0.45, linewidths=0)
        means = group.groupby("knob")[["frac_steady", "accuracy", "headline"]].mean().sort_values("frac_steady")
        axes.plot(means["frac_steady"], means["accuracy"], color=color, linewidth=1.3)
        shown = means[means["headline"] > 0]
        axes.scatter(
            shown["frac_steady"],
            shown["accuracy"],
            s=62,
            color=color,
            marker=marker,
            edgecolors="white",
            label=data.titles[name],
            zorder=3,
        )
    axes.set(xlabel="share of features acquired after the first step", ylabel="accuracy")
    axes.xaxis.set_major_formatter(PercentFormatter(1, 0))
    axes.yaxis.set_major_formatter(PercentFormatter(1, 0))
    drawing.legend(loc="outside right center", frameon=False)
    return drawing


@figure(
    "training",
    task=TASK,
    title="Training",
    caption=(
        "Task loss, and share of the cost acquired, on training batches with the gates of training; mean over seeds of the λ "
        "that the table shows. λ rises from 0 at the beginning."
    ),
    alt="Two line plots over steps, one line per method: task loss, and share of the cost acquired.",
)
def training(data: FigureData) -> Figure | None:
    """Draw the task loss and the cost over steps."""
    import matplotlib.pyplot as plt

    table = data.frames("history.csv")
    if table.empty or "task_loss" not in table:
        return None
    drawing, (left, right) = plt.subplots(1, 2, figsize=(9.6, 4), layout="constrained")
    for row, group in table.groupby("method", sort=False):
        curves = group.groupby("step")[["task_loss", "cost_fraction"]].mean()
        color, label = data.colors[str(row)], data.titles[str(row)]
        left.plot(curves.index, curves["task_loss"], color=color, label=label, linewidth=1.3)
        right.plot(curves.index, curves["cost_fraction"], color=color, linewidth=1.3)
    left.set(xlabel="step", ylabel="task loss (nats)")
    right.set(xlabel="step", ylabel="share of the cost acquired", ylim=(-0.03, 1.03))
    handles, labels = left.get_legend_handles_labels()
    drawing.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    return drawing
