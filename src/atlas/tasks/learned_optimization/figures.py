"""Figures of learned optimization: every optimizer's loss on every problem, and what each reached."""

from __future__ import annotations

from typing import TYPE_CHECKING

from atlas.harness.plots import PALETTE, FigureData, figure

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TASK = "learned-optimization"
STYLES = ("-", "--", ":")
REFERENCE = "adam"


def style(data: FigureData, row: str) -> tuple[str, str]:
    """Colour and line style of a row: the palette's, then the palette's dashed, so that no two rows look alike."""
    index = list(data.colors).index(row)
    return data.colors[row], STYLES[index // len(PALETTE) % len(STYLES)]


def _curves(axes: Axes, data: FigureData, table: pd.DataFrame, rows: list[str], measure: str) -> None:
    """Draw the median over seeds of the rows' losses on one problem, with the range of the seeds."""
    for row in rows:
        own = table[table["method"].eq(row)].dropna(subset=[measure])
        if own.empty:
            continue
        over = own.groupby("step")[measure].agg(["median", "min", "max"])
        color, line = style(data, row)
        width = 1.6 if row != REFERENCE else 2.2
        axes.plot(over.index, over["median"], line, color=color, label=data.titles[row], linewidth=width)
        axes.fill_between(over.index, over["min"], over["max"], color=color, alpha=0.1, linewidth=0)


@figure(
    "trajectories",
    task=TASK,
    title="Loss along the way",
    caption=(
        "Training loss (mean of an epoch's mini-batches; for functions, their value) against steps, on every problem: the tuned "
        "hand-made optimizers on the left, learned ones on the right with Adam as the thick reference. Lines are medians over "
        "seeds of each run's median over its starts; bands span the seeds."
    ),
    alt="A grid of line plots on logarithmic axes, one row per problem: hand-made optimizers left, learned ones right.",
)
def trajectories(data: FigureData) -> Figure | None:
    """Training loss over steps, per problem, for the analytic field and for learned rows."""
    import matplotlib.pyplot as plt

    table = data.frames("curves.csv")
    if table.empty:
        return None
    problems = list(dict.fromkeys(table["problem"]))
    present = list(dict.fromkeys(table["method"]))
    learned = [row for row in present if _is_learned(data, row)]
    field = [row for row in present if row not in learned]
    columns = [rows for rows in (field, [*learned, *[REFERENCE] * (REFERENCE in field)]) if rows]
    drawing, grid = plt.subplots(
        len(problems), len(columns), figsize=(10.5, 2.3 * len(problems) + 1.2), squeeze=False, layout="constrained", sharey="row"
    )
    for problem, line in zip(problems, grid, strict=True):
        own = table[table["problem"].eq(problem)]
        for axes, rows in zip(line, columns, strict=True):
            _curves(axes, data, own, rows, "train")
            axes.set(yscale="log", title=problem)
        line[0].set_ylabel("training loss")
    for axes in grid[-1]:
        axes.set_xlabel("step")
    handles = {label: handle for axes in grid[0] for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    drawing.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=4)
    return drawing


def _is_learned(data: FigureData, row: str) -> bool:
    """Whether a row was meta-trained rather than tuned."""
    run = next(run for run in data.runs if run.method == row)
    return all("hand-made" not in entry.traits for entry in run.method_entries)


@figure(
    "best-validation",
    task=TASK,
    title="What each optimizer reached",
    caption=(
        "Logarithm of the smallest validation loss on every problem, mean over starts, replicates and seeds; the darker, the "
        "better in its column, and the best of a column is in bold. Functions have no held-out examples: theirs is the value."
    ),
    alt="A table of optimizers by problems, coloured by rank within each problem.",
)
def best_validation(data: FigureData) -> Figure | None:
    """Draw the best log validation loss of every row on every problem."""
    import matplotlib.pyplot as plt

    table = data.frames("evaluations.csv")
    if table.empty:
        return None
    order = list(dict.fromkeys(table["method"]))
    means = table.pivot_table(index="method", columns="problem", values="best_log_val", sort=False)
    means = means.reindex(order)[list(dict.fromkeys(table["problem"]))]
    ranks = means.rank(ascending=False, pct=True)
    drawing, axes = plt.subplots(figsize=(2.6 + 1.15 * len(means.columns), 1.0 + 0.33 * len(means)), layout="constrained")
    axes.imshow(ranks.to_numpy(dtype=float), cmap="Blues", aspect="auto", vmin=0, vmax=1.35)
    values, shades = means.to_numpy(dtype=float), ranks.to_numpy(dtype=float)
    for row in range(values.shape[0]):
        for column in range(values.shape[1]):
            value = values[row, column]
            weight = "bold" if value == values[:, column].min() else "normal"
            color = "white" if shades[row, column] > 0.8 else "black"
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=9, color=color, fontweight=weight)
    axes.set_xticks(range(len(means.columns)), means.columns)
    axes.set_yticks(range(len(means)), [data.titles[row] for row in means.index])
    axes.tick_params(length=0)
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return drawing
