"""Figures of the paper: fronts of equations, and what a network and its equation make of their inputs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from atlas.harness.plots import PALETTE, FigureData, figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TASK, PAPER = "learned-optimization", "symbolic-l2o"
LONGEST = 110  # characters of an equation that are written out


@figure(
    "equations",
    task=TASK,
    paper=PAPER,
    title="Equations of the networks",
    caption=(
        "Fronts of symbolic regression, one line per seed: R² on a run that was held out, against the number of nodes. Rings "
        "mark the equations that were selected, which are written out below with the engine that found them. Dashed: what "
        "gradient-boosted trees reach on the same windows."
    ),
    alt="Line plots of R² against complexity, rising and levelling off, with the selected equations written below.",
)
def equations(data: FigureData) -> Figure | None:
    """Complexity against fidelity, with the selected equations."""
    import matplotlib.pyplot as plt

    table = data.frames("front.csv")
    if table.empty:
        return None
    rows = list(dict.fromkeys(table["method"]))
    rules = {(run.method, run.seed): json.loads(path.read_text()) for run, path in data.files("rule.json")}
    lines = sum(1 for key in rules if key[0] in rows)
    drawing, panels = plt.subplots(
        1, len(rows), figsize=(max(8.0, 4.2 * len(rows)), 3.6 + 0.24 * lines), squeeze=False, layout="constrained"
    )
    written = []
    for axes, row in zip(panels[0], rows, strict=True):
        for index, (seed, front) in enumerate(table[table["method"].eq(row)].groupby("seed")):
            color = PALETTE[index % len(PALETTE)]
            axes.plot(front["complexity"], front["r2_test"], "o-", color=color, markersize=3, label=f"seed {seed}")
            rule = rules.get((row, int(str(seed))))
            if rule is None:
                continue
            axes.plot(rule["mapping_complexity"], rule["r2_test"], "o", color=color, markersize=11, fillstyle="none")
            axes.axhline(rule["r2_bound"], color=color, linestyle="--", linewidth=0.8)
            text = _rounded(rule["expression"])
            written.append(f"{row}, seed {seed} ({rule['engine']}): {text}")
        axes.set(title=data.titles[row], xlabel="nodes", ylim=(min(0.0, max(-0.5, table["r2_test"].min())), 1.02))
    panels[0][0].set_ylabel("R², held-out run")
    panels[0][0].legend()
    drawing.supxlabel("\n".join(written), fontsize=7.5, x=0.01, ha="left")
    return drawing


def _rounded(expression: str) -> str:
    """An equation with three digits, cut where it is long."""
    import re

    short = re.sub(r"\d+\.\d+(?:e-?\d+)?", lambda match: f"{float(match[0]):.3g}", expression)
    return short if len(short) <= LONGEST else short[: LONGEST - 1] + "…"


@figure(
    "surfaces",
    task=TASK,
    paper=PAPER,
    title="What network and equation do",
    caption=(
        "Update, before its scale, where the two inputs m̃ and g̃ have kept a value in [−1, 1] for as many steps as the equation "
        "looks back: the network left, its equation right; first seed. An equation of one input has a curve."
    ),
    alt="Pairs of colour maps of the update over both inputs, for the network and for its equation.",
)
def surfaces(data: FigureData) -> Figure | None:
    """The learned update and the equation, side by side."""
    import matplotlib.pyplot as plt

    table = data.frames("surface.csv")
    if table.empty:
        return None
    rows = list(dict.fromkeys(table["method"]))
    drawing, grid = plt.subplots(len(rows), 2, figsize=(7.6, 3.2 * len(rows)), squeeze=False, layout="constrained")
    for row, line in zip(rows, grid, strict=True):
        own = table[table["method"].eq(row)]
        own = own[own["seed"].eq(own["seed"].min())]
        for axes, column in zip(line, ("network", "equation"), strict=True):
            alone = own["second"].nunique() == 1
            axes.set(title=f"{data.titles[row]}: {column}", xlabel="gradient" if alone else "m̃")
            if alone:
                axes.plot(own["first"], own[column], color=PALETTE[0])
                continue
            values = own.pivot_table(index="second", columns="first", values=column)
            bound = max(1e-9, own[["network", "equation"]].abs().to_numpy().max())
            image = axes.pcolormesh(values.columns, values.index, values, cmap="RdBu_r", vmin=-bound, vmax=bound, rasterized=True)
            axes.set_ylabel("g̃")
            if column == "equation":
                drawing.colorbar(image, ax=line, shrink=0.8, label="update ÷ α")
    return drawing


@figure(
    "state",
    task=TASK,
    paper=PAPER,
    title="Memory of optimizers",
    caption="Bytes of state per parameter, mean over seeds, on a logarithmic axis: what an optimizer keeps beside the weights.",
    alt="Horizontal bars of state bytes per parameter; recurrent networks need the most, equations little.",
)
def state(data: FigureData) -> Figure | None:
    """Bars of the state that every row keeps, in bytes per parameter."""
    import matplotlib.pyplot as plt

    table = data.metrics()
    if "state_bytes" not in table or "symbolic" not in set(table["method"]):
        return None
    means = table.dropna(subset=["state_bytes"]).groupby("method", sort=False)["state_bytes"].mean().sort_values()
    drawing, axes = plt.subplots(figsize=(7.6, 0.26 * len(means) + 1.2), layout="constrained")
    axes.barh([data.titles[row] for row in means.index], means.clip(lower=1), color=PALETTE[0])
    for height, value in enumerate(means):
        axes.text(max(value, 1) * 1.05, height, f"{value:.0f}", va="center", fontsize=8)
    axes.set(xscale="log", xlabel="bytes per parameter")
    return drawing
