"""Figures of federated learning: accuracy over widths and costs, over rounds, and for clients of every budget."""

from __future__ import annotations

from typing import TYPE_CHECKING

from atlas.harness.plots import FigureData, figure

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TASK = "federated-learning"
MIDDLE = 0.5


def clean_accuracy(data: FigureData) -> pd.DataFrame:
    """Mean over clients of clean accuracy, per row, seed, width and the λ in use; columns method, seed, width, accuracy."""
    table = data.frames("evaluation.csv")
    if table.empty:
        return table
    table = table[table["attack"].eq("none") & (table["lam"].isna() | table["lam"].eq(MIDDLE))]
    scored = table.assign(accuracy=table["correct"] / table["n"])
    return scored.groupby(["method", "seed", "width"], sort=False)["accuracy"].mean().reset_index()


def spread_of(axes: Axes, data: FigureData, row: str, groups: pd.Series, style: str = "o-") -> None:
    """Draw the mean over seeds of a series with index (seed, x), and its range as bars."""
    means, lows, highs = (getattr(groups.groupby(level=1), name)() for name in ("mean", "min", "max"))
    axes.errorbar(
        means.index,
        means,
        yerr=[means - lows, highs - means],
        fmt=style,
        color=data.colors[row],
        label=data.titles[row],
        capsize=2,
        markersize=5,
        linewidth=1.4,
    )


@figure(
    "widths",
    task=TASK,
    title="Accuracy over widths and costs",
    caption=(
        "Mean over clients of the test accuracy of every model that a method serves, over its width and over the "
        "multiply–accumulates of an image. Points are means over seeds, bars their range. A row with one width is one point; "
        "FedAvg wider than the narrowest budget trains what most clients cannot."
    ),
    alt="Two line plots: accuracy over width and over multiply–accumulates, one line per method.",
)
def widths(data: FigureData) -> Figure | None:
    """Accuracy against width, and against MACs where the largest model's are known."""
    import matplotlib.pyplot as plt

    table, metrics = clean_accuracy(data), data.metrics()
    if table.empty or "forward_macs" not in metrics:
        return None
    macs = _macs_by_width(table, metrics)
    drawing, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.9), layout="constrained", sharey=True)
    for row, group in table.groupby("method", sort=False):
        spread_of(left, data, str(row), group.set_index(["seed", "width"])["accuracy"])
        known = [(str(row), width) in macs for width in group["width"]]
        priced = group[known]
        if len(priced):
            costs = [macs[str(row), width] for width in priced["width"]]
            spread_of(right, data, str(row), priced.assign(macs=costs).set_index(["seed", "macs"])["accuracy"])
    for axes, label in ((left, "width of the model"), (right, "multiply–accumulates per image")):
        axes.set_xscale("log", base=2)
        axes.set_xlabel(label)
    shown = sorted(table["width"].unique())
    left.set_xticks(shown, [f"{width:g}" for width in shown])
    left.set_ylabel("accuracy")
    handles, labels = left.get_legend_handles_labels()
    drawing.legend(handles, labels, loc="outside lower center", ncols=4)
    return drawing


def _macs_by_width(table: pd.DataFrame, metrics: pd.DataFrame) -> dict[tuple[str, float], float]:
    """MACs of every row at every width: its own at its widest; narrower ones as another row has them at that width.

    A mixed model costs in proportion to its width. A prefix costs what the network of its width does, which is known where a
    row of that width alone is there.
    """
    own = metrics.groupby("method")["forward_macs"].first().to_dict()
    widest = table.groupby("method")["width"].agg(["max", "nunique"])
    alone = {float(widest.loc[row, "max"]): own[row] for row in widest.index if widest.loc[row, "nunique"] == 1 and row in own}
    macs = {}
    for row, width in table[["method", "width"]].drop_duplicates().itertuples(index=False):
        if row not in own:
            continue
        if width == widest.loc[row, "max"]:
            macs[row, width] = own[row]
        elif str(row).startswith("split-mix"):
            macs[row, width] = own[row] * width / widest.loc[row, "max"]
        elif width in alone:
            macs[row, width] = alone[width]
    return macs


@figure(
    "rounds",
    task=TASK,
    title="Convergence",
    caption=(
        "Accuracy of the widest model on the clients' held-out validation parts, over rounds; mean over seeds. With batch "
        "statistics it is lower than test accuracy where clients hold out few images."
    ),
    alt="Line plot of validation accuracy over rounds, one line per method.",
)
def rounds(data: FigureData) -> Figure | None:
    """Draw the validation accuracy over rounds."""
    import matplotlib.pyplot as plt

    table = data.frames("history.csv")
    if table.empty or "validation_accuracy" not in table:
        return None
    table = table.dropna(subset=["validation_accuracy"])
    drawing, axes = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    for row, group in table.groupby("method", sort=False):
        curve = group.groupby("step")["validation_accuracy"].mean()
        axes.plot(curve.index, curve, color=data.colors[str(row)], label=data.titles[str(row)], linewidth=1.4)
    axes.set(xlabel="round", ylabel="validation accuracy")
    drawing.legend(loc="outside lower center", ncols=4)
    return drawing


@figure(
    "budgets",
    task=TASK,
    title="Who gains: accuracy for clients of every budget",
    caption=(
        "Test accuracy of the widest model, averaged over the clients of each budget. Budgets go with domains unless the "
        "benchmark spreads them, so a method that leaves poor clients out of the wide model fails on their domains."
    ),
    alt="Grouped bar chart: accuracy for clients of each budget, one bar per method, error bars over seeds.",
)
def by_budget(data: FigureData) -> Figure | None:
    """Draw the accuracy of every method's widest model for the clients of each budget."""
    import matplotlib.pyplot as plt

    table = data.frames("evaluation.csv")
    if table.empty or table["budget"].nunique() < 2:
        return None
    table = table[table["attack"].eq("none") & (table["lam"].isna() | table["lam"].eq(MIDDLE))]
    table = table[table["width"].eq(table.groupby("method")["width"].transform("max"))]
    scored = table.assign(accuracy=table["correct"] / table["n"])
    rows, budgets = list(dict.fromkeys(scored["method"])), sorted(scored["budget"].unique())
    drawing, axes = plt.subplots(figsize=(8.2, 4.2), layout="constrained")
    width = 0.8 / len(rows)
    for number, row in enumerate(rows):
        per_seed = scored[scored["method"].eq(row)].groupby(["budget", "seed"])["accuracy"].mean().unstack()
        means = per_seed.mean(axis=1)
        at = [index + (number - (len(rows) - 1) / 2) * width for index in range(len(budgets))]
        error = [means - per_seed.min(axis=1), per_seed.max(axis=1) - means]
        axes.bar(at, means, width, color=data.colors[row], label=data.titles[row], yerr=error, error_kw={"linewidth": 0.8})
    axes.set(xlabel="budget of the client", ylabel="accuracy of the widest model", ylim=(0, 1))
    axes.set_xticks(range(len(budgets)), [f"{budget:g}" for budget in budgets])
    drawing.legend(loc="outside lower center", ncols=4)
    return drawing
