"""Figures of the paper: what each activity asks for, and one session step by step."""

from __future__ import annotations

from typing import TYPE_CHECKING

from atlas.harness.plots import PALETTE, FigureData, figure

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROW = "vfds"
SELECTED = 0.01
"""Gates that open less often than this on average are left out, as the official script does on UCI HAR."""
MOST = 40


@figure(
    "selection",
    task="feature-acquisition",
    paper="vfds",
    title="What each activity asks for",
    caption=(
        "Share of the steps at which VFDS opens a gate, per activity (or context, where the stream has one), without the first "
        "step; mean over seeds. Gates that open at less than 1 % of the steps are left out."
    ),
    alt="Heat map: activities in rows, gates in columns, darker where a gate opens more often.",
)
def selection(data: FigureData) -> Figure | None:
    """Draw the mean gates (columns) of every activity (rows) as a heat map."""
    import matplotlib.pyplot as plt

    table = data.frames("profile.csv")
    if table.empty or not table["method"].eq(ROW).any():
        return None
    table = table[table["method"].eq(ROW)]
    labels, gates = list(dict.fromkeys(table["label"])), list(dict.fromkeys(table["gate"]))
    grid = table.pivot_table(index="label", columns="gate", values="mean", aggfunc="mean").loc[labels, gates]
    shown = grid.mean().sort_values(ascending=False)
    kept = set(shown[shown > SELECTED].index[:MOST])
    grid = grid[[gate for gate in gates if gate in kept]]
    if grid.empty:
        return None
    drawing, axes = plt.subplots(figsize=(max(5.5, 2.2 + 0.27 * grid.shape[1]), 2.4 + 0.3 * len(labels)), layout="constrained")
    image = axes.imshow(grid.to_numpy(), cmap="cividis_r", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(grid.shape[1]), [str(gate) for gate in grid.columns], rotation=90, fontsize=8)
    axes.set_yticks(range(len(labels)), labels)
    axes.grid(visible=False)
    drawing.colorbar(image, ax=axes, label="share of steps", shrink=0.9)
    return drawing


@figure(
    "session",
    task="feature-acquisition",
    paper="vfds",
    title="One session, step by step",
    caption=(
        "The first test sequence of the first seed. Above, the activity and VFDS's prediction; below, the gates that were open "
        "at each step, decided before it was seen. The first step is given. Shading marks the context where the stream has one."
    ),
    alt="Timeline: two strips of activity and prediction over steps, and a raster of open gates below.",
)
def session(data: FigureData) -> Figure | None:
    """Activity, prediction and gates over time."""
    import matplotlib.pyplot as plt

    table = data.frames("session.csv")
    if table.empty or not table["method"].eq(ROW).any():
        return None
    table = table[table["method"].eq(ROW)]
    table = table[table["seed"].eq(table["seed"].iloc[0])].fillna("")
    opened = [str(value).split(" | ") if value else [] for value in table["gates"]]
    gates = list(dict.fromkeys(gate for names in opened[1:] for gate in names))
    height = 2.6 + 0.16 * max(4, len(gates))
    drawing, (strips, raster) = plt.subplots(
        2, 1, figsize=(9.6, height), sharex=True, layout="constrained", height_ratios=[1.1, max(2.0, 0.2 * len(gates))]
    )
    _strips(strips, table)
    _shade(raster, table)
    for row, gate in enumerate(gates):
        steps = [step for step, names in zip(table["step"], opened, strict=True) if gate in names]
        raster.scatter(steps, [row] * len(steps), marker="s", s=18, color=PALETTE[0], linewidths=0)
    raster.set_yticks(range(len(gates)), gates, fontsize=8)
    raster.set(xlabel="step", ylim=(len(gates) - 0.4, -0.6), xlim=(-0.6, len(table) - 0.4))
    return drawing


def _strips(axes: Axes, table: pd.DataFrame) -> None:
    """Draw activity and prediction over the steps as two strips with a colour per class."""
    classes = sorted({str(name) for column in ("label", "prediction") for name in table[column] if name})
    colors = {name: PALETTE[index % len(PALETTE)] for index, name in enumerate(classes)}
    for row, column in enumerate(("label", "prediction")):
        for step, name in zip(table["step"], table[column], strict=True):
            axes.barh(row, 1, left=step - 0.5, height=0.8, color=colors.get(str(name), "white"), linewidth=0)
    axes.set_yticks([0, 1], ["activity", "prediction"])
    axes.invert_yaxis()
    axes.grid(visible=False)
    for name, color in colors.items():
        axes.bar(0, 0, color=color, label=name)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4, frameon=False, fontsize=8)


def _shade(axes: Axes, table: pd.DataFrame) -> None:
    """Put grey bands under every second stretch of a context."""
    contexts = [str(value) for value in table["context"]]
    if not any(contexts):
        return
    start, dark = 0, False
    for step in range(1, len(contexts) + 1):
        if step == len(contexts) or contexts[step] != contexts[start]:
            if dark:
                axes.axvspan(start - 0.5, step - 0.5, color="#7F7F7F", alpha=0.18, linewidth=0)
            start, dark = step, not dark
