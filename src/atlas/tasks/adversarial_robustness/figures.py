"""Figures of adversarial robustness: robust overfitting over the epochs, and what robustness costs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from atlas.harness.plots import FigureData, figure

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TASK = "adversarial-robustness"
LEGEND_COLUMNS = 5
SIDE_BY_SIDE = 0.05
"""Relative distance at which rows of equal cost are drawn beside each other."""


def spread(values: Mapping[str, float]) -> dict[str, float]:
    """Move values that are equal to within a few per cent apart, for a logarithmic axis; each group keeps its middle."""
    ordered = sorted(values, key=lambda row: values[row])
    groups: list[list[str]] = []
    for row in ordered:
        near = groups and values[row] <= values[groups[-1][0]] * (1 + SIDE_BY_SIDE)
        groups = [*groups[:-1], [*groups[-1], row]] if near else [*groups, [row]]
    return {
        row: values[row] * (1 + SIDE_BY_SIDE) ** (position - (len(group) - 1) / 2)
        for group in groups
        for position, row in enumerate(group)
    }


def logarithmic(axes: Axes, label: str) -> None:
    """A logarithmic horizontal axis with few, short tick labels."""
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    axes.set(xscale="log", xlabel=label)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(EngFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())


def _curve(axes: Axes, data: FigureData, table: pd.DataFrame, row: str, column: str) -> None:
    """One row's curve over the epochs, in per cent: mean over seeds, with their range."""
    values = table[table["method"].eq(row)].dropna(subset=[column])
    if values.empty:
        return
    curve = 100 * values.groupby("epoch")[column].agg(["mean", "min", "max"])
    color = data.colors[row]
    axes.plot(curve.index, curve["mean"], color=color, label=data.titles[row], linewidth=1.4)
    axes.fill_between(curve.index, curve["min"], curve["max"], color=color, alpha=0.1, linewidth=0)


@figure(
    "overfitting",
    task=TASK,
    title="Robust overfitting",
    caption=(
        "Robust accuracy over the epochs, mean over seeds with their range: on the training batches as they come (augmented, "
        "with the labels that they are trained on), on the validation images, and on the test images. Where training goes on "
        "rising while the others fall, the network overfits."
    ),
    alt="Three line plots over epochs, one line per method: robust accuracy on training, validation and test images.",
)
def overfitting(data: FigureData) -> Figure | None:
    """Robust accuracy on the three splits over the epochs, per method."""
    import matplotlib.pyplot as plt

    table = data.frames("history.csv")
    if table.empty or "train_ra" not in table:
        return None
    panels = [("train_ra", "training batches"), ("val_ra", "validation images"), ("test_ra", "test images")]
    panels = [(column, title) for column, title in panels if column in table]
    drawing, axes = plt.subplots(1, len(panels), figsize=(3.6 * len(panels), 4.3), squeeze=False, layout="constrained")
    for panel, (column, title) in zip(axes[0], panels, strict=True):
        for row in dict.fromkeys(table["method"]):
            _curve(panel, data, table, str(row), column)
        panel.set(title=title, xlabel="epoch")
    axes[0][0].set_ylabel("robust accuracy (%)")
    handles, labels = axes[0][0].get_legend_handles_labels()
    drawing.legend(handles, labels, loc="outside lower center", ncols=LEGEND_COLUMNS)
    return drawing


@figure(
    "accuracy-cost",
    task=TASK,
    title="Robust accuracy against cost",
    caption=(
        "Robust accuracy on the test images at the last epoch (filled) and at the best epoch (open), joined by a line, against "
        "the operations of the whole training and of one forward pass, counted with the weights that existed; mean over seeds. "
        "The length of a line is robust overfitting. Rows of nearly equal cost are drawn side by side."
    ),
    alt="Two scatter plots on logarithmic axes: robust accuracy against training cost and against inference cost.",
)
def accuracy_cost(data: FigureData) -> Figure | None:
    """Best and last robust accuracy against training and inference costs, per method."""
    import matplotlib.pyplot as plt

    table = data.metrics()
    if table.empty or "ra_final" not in table:
        return None
    drawing, axes = plt.subplots(1, 2, figsize=(9.0, 4.4), sharey=True, layout="constrained")
    costs = (("train_flops", "training FLOPs"), ("forward_flops", "FLOPs of a forward pass"))
    for panel, (cost, label) in zip(axes, costs, strict=True):
        means = table.groupby("method", sort=False)[[cost, "ra_best", "ra_final"]].mean()
        places = spread(dict(zip(map(str, means.index), means[cost].tolist(), strict=True)))
        for row, x in places.items():
            color, last, best = data.colors[row], 100 * means["ra_final"][row], 100 * means["ra_best"][row]
            panel.plot([x, x], [best, last], color=color, linewidth=1)
            panel.plot(x, best, "o", color=color, markerfacecolor="white", markersize=6)
            panel.plot(x, last, "o", color=color, markersize=6, label=data.titles[row])
        logarithmic(panel, label)
    axes[0].set_ylabel("robust accuracy on test images (%)")
    handles, labels = axes[0].get_legend_handles_labels()
    drawing.legend(handles, labels, loc="outside lower center", ncols=LEGEND_COLUMNS)
    return drawing
