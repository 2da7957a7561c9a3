"""Figures of the paper: accuracy against computation, what is kept, how the search got there, and whether time follows."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from atlas.harness.plots import PALETTE, FigureData, figure

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TASK = "image-classification"
PAPER = "uvc"
MARKERS = "osD^vPX<>*ph8d"


def _compressed(data: FigureData) -> pd.DataFrame:
    """Evaluated rows that state what they kept; their means over seeds."""
    table = data.metrics()
    if "r_phys" not in table:
        return table.iloc[:0]
    return table.dropna(subset=["r_phys"]).groupby(["method", "title"], sort=False).mean(numeric_only=True).reset_index()


@figure(
    "compression",
    task=TASK,
    paper=PAPER,
    title="Accuracy against computation",
    caption=(
        "Test accuracy of every compressed model against the multiply-accumulates that it kept, mean over seeds: right after the "
        "export, and after fine-tuning with the same teacher for the same epochs. The dashed line is the dense model that all "
        "started from. Unstructured pruning saves no computation and stands at 1."
    ),
    alt="Two scatter plots of accuracy against the share of multiply-accumulates left, one marker per method.",
)
def compression(data: FigureData) -> Figure | None:
    """Accuracy over MACs left, before and after fine-tuning."""
    import matplotlib.pyplot as plt

    table = _compressed(data)
    if table.empty:
        return None
    drawing, panels = plt.subplots(1, 2, figsize=(9.6, 4.2), sharey=True, layout="constrained")
    everything = data.metrics()
    dense = everything[everything["method"].eq("deit")]["top1"]
    for axes, metric, title in zip(panels, ("acc_pre_ft", "top1"), ("right after the export", "after fine-tuning"), strict=True):
        for index, row in enumerate(table.itertuples()):
            style = {"color": data.colors[str(row.method)], "marker": MARKERS[index % len(MARKERS)]}
            axes.scatter(row.r_phys, getattr(row, metric), s=52, edgecolor="white", label=row.title, **style)
        if len(dense):
            axes.axhline(dense.mean(), color="#7F7F7F", linestyle="--", linewidth=1)
        axes.set(title=title, xlabel="multiply-accumulates left", xlim=(0, 1.06))
    panels[0].set_ylabel("top-1")
    panels[0].yaxis.set_major_formatter(lambda value, position: f"{value:.0%}")
    handles, labels = panels[0].get_legend_handles_labels()
    drawing.legend(handles, labels, loc="outside lower center", ncols=4)
    return drawing


def _shares(data: FigureData) -> dict[str, Any]:
    """Row → (3, depth) shares of head, dims and neurons kept, mean over seeds; 0 where a block is skipped."""
    import numpy as np

    by_row = defaultdict(list)
    for run, path in data.files("plan.json"):
        plan = json.loads(path.read_text())
        keep = np.array(plan["keep"])
        shares = [keep * np.array(plan[kind]) / np.array(plan["of"][kind]) for kind in ("heads", "dims", "neurons")]
        by_row[run.method].append(np.stack(shares))
    return {row: np.mean(shares, 0) for row, shares in by_row.items() if np.mean(shares) < 1}


@figure(
    "compression-plans",
    task=TASK,
    paper=PAPER,
    title="What is kept, block by block",
    caption=(
        "Share of heads, of dims of values and of hidden neurons that each block keeps, mean over seeds; a skipped block keeps "
        "nothing. Dark is everything, white is nothing."
    ),
    alt="Grids of shades, one per method: columns are blocks, rows are heads, dims and neurons.",
)
def compression_plans(data: FigureData) -> Figure | None:
    """The learned architecture of every row as a picture."""
    import matplotlib.pyplot as plt

    shares = _shares(data)
    if not shares:
        return None
    columns = min(3, len(shares))
    lines = -(-len(shares) // columns)
    size = (3.4 * columns, 1.5 * lines + 0.5)
    drawing, grid = plt.subplots(lines, columns, figsize=size, squeeze=False, layout="constrained")
    for axes in grid.flat[len(shares) :]:
        axes.set_visible(False)
    picture = None
    for axes, (row, values) in zip(grid.flat, shares.items(), strict=False):
        picture = axes.imshow(values, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        step = max(1, values.shape[1] // 8)
        axes.set_xticks(range(0, values.shape[1], step), [str(block + 1) for block in range(0, values.shape[1], step)])
        axes.set_yticks(range(3), ["heads", "dims", "neurons"])
        axes.set_title(data.titles[row], fontsize="medium")
        axes.grid(visible=False)
        for block, shade in enumerate(values.T):
            for line, value in enumerate(shade):
                if values.shape[1] <= 6:
                    color = "white" if value > 0.6 else "black"
                    axes.text(block, line, f"{value:.0%}", ha="center", va="center", fontsize=7, color=color)
    if picture is not None:
        drawing.colorbar(picture, ax=grid, label="share kept", shrink=0.8)
    return drawing


def _curve(axes: Axes, curves: pd.DataFrame, column: str, style: str, **options: Any) -> None:
    mean = curves.groupby("step")[column].mean()
    axes.plot(mean.index, mean, style, **options)


@figure(
    "compression-search",
    task=TASK,
    paper=PAPER,
    title="How the search meets its budget",
    caption=(
        "Above, the multiply-accumulates R that the search counts (its gates are drawn anew each step, so R is noisy), and "
        "dotted the budget in force, which falls from 1 to its final value. Below, the dual variable z, the price of the budget. "
        "Mean over seeds. The plan is repaired to the budget after the last step."
    ),
    alt="Line plots over search steps: the resource approaches the falling budget while the price rises.",
)
def compression_search(data: FigureData) -> Figure | None:
    """Draw R, the falling budget and the price of the budget over the steps of the search."""
    import matplotlib.pyplot as plt

    table = data.frames("search.csv")
    if table.empty or "dual" not in table:
        return None
    table = table.dropna(subset=["dual"])
    drawing, (above, below) = plt.subplots(2, 1, figsize=(7.2, 5.6), sharex=True, layout="constrained")
    for row, curves in table.groupby("method", sort=False):
        options = {"color": data.colors[str(row)], "linewidth": 1.4}
        _curve(above, curves, "resource", "-", label=data.titles[str(row)], **options)
        _curve(above, curves, "target", ":", **options)
        _curve(below, curves, "dual", "-", **options)
    above.set(ylabel="R, and the budget", ylim=(0, 1.03))
    below.set(xlabel="step of the search", ylabel="dual variable z")
    handles, labels = above.get_legend_handles_labels()
    drawing.legend(handles, labels, loc="outside lower center", ncols=3)
    return drawing


def _timed(data: FigureData) -> list[tuple[str, float, float]]:
    """(title, MACs left, time relative to dense) of every seed of every row, and of the plans of random weights."""
    table = data.metrics()
    points: list[tuple[str, float, float]] = []
    for plan, title in (("uvc", "blocks, heads, neurons"), ("ragged", "dims and neurons"), ("skip", "blocks alone")):
        if f"latency_ratio_{plan}" in table:
            rows = table[[f"r_phys_{plan}", f"latency_ratio_{plan}"]].dropna().astype(float)
            points += [(title, left, ratio) for left, ratio in rows.to_numpy().tolist()]
    if "latency_ratio_b64" in table:
        rows = table.dropna(subset=["latency_ratio_b64", "r_phys"])
        numbers = rows[["r_phys", "latency_ratio_b64"]].astype(float).to_numpy().tolist()
        points += [(str(title), left, ratio) for title, (left, ratio) in zip(rows["title"], numbers, strict=True)]
    return points


@figure(
    "compression-latency",
    task=TASK,
    paper=PAPER,
    title="Does time follow computation?",
    caption=(
        "Measured time of a forward pass relative to the dense model's, interleaved in the same process, against the "
        "multiply-accumulates left; every dot is a seed. On the grey line time falls as computation does."
    ),
    alt="Scatter plot of relative time against the share of multiply-accumulates left, near the diagonal.",
)
def compression_latency(data: FigureData) -> Figure | None:
    """Draw the time of every compressed model against its multiply-accumulates, both relative to the dense one."""
    import matplotlib.pyplot as plt

    timed = _timed(data)
    if not timed:
        return None
    drawing, axes = plt.subplots(figsize=(6.4, 4.6), layout="constrained")
    axes.plot([0, 1], [0, 1], color="#BBBBBB", linewidth=1, zorder=0)
    titles = list(dict.fromkeys(title for title, _, _ in timed))
    for index, title in enumerate(titles):
        points = [(left, ratio) for name, left, ratio in timed if name == title]
        marker = MARKERS[index % len(MARKERS)]
        left, ratio = zip(*points, strict=True)
        axes.scatter(left, ratio, s=40, color=PALETTE[index % len(PALETTE)], marker=marker, label=title)
    axes.set(xlabel="multiply-accumulates left", ylabel="time relative to dense", xlim=(0, 1.06), ylim=(0, None))
    handles, labels = axes.get_legend_handles_labels()
    drawing.legend(handles, labels, loc="outside lower center", ncols=3)
    return drawing
