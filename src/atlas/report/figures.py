"""Figures: one style for all, the same file bit for bit when drawn again from the same numbers."""

from __future__ import annotations

import io
import shutil
from typing import TYPE_CHECKING, Any

from atlas.harness.files import write_json, write_text
from atlas.harness.plots import FigureData, FigureEntry, figures_of
from atlas.harness.study import Study
from atlas.report.collect import collect_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE: Any = {
    "figure.figsize": (7.0, 3.9),
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "axes.edgecolor": "#8a8f98",
    "axes.labelcolor": "#30343b",
    "axes.titlesize": 11,
    "axes.labelsize": 10,
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "#e6e8eb",
    "grid.linewidth": 0.8,
    "xtick.color": "#30343b",
    "ytick.color": "#30343b",
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "font.family": "DejaVu Sans",
    "svg.fonttype": "path",
    "svg.hashsalt": "atlas",
}


def write_figures(study: Study, task: str, dataset: str) -> None:
    """Draw every figure of a table that has its data; ``index.json`` holds their captions."""
    import matplotlib as mpl

    mpl.use("svg")
    folder = study.results / "figures" / task / dataset
    shutil.rmtree(folder, ignore_errors=True)
    data = FigureData(study, task, dataset)
    index = []
    with mpl.rc_context(STYLE):
        for figure in (headline_entry(study, task, dataset), *figures_of(task)):
            drawn = figure.draw(data)
            if drawn is not None:
                write_text(folder / f"{figure.name}.svg", svg(drawn))
                index.append({"name": figure.name, "title": figure.title, "caption": figure.caption, "alt": figure.alt})
    write_json(folder / "index.json", {"figures": index})


def svg(figure: Figure) -> str:
    """Render a figure as SVG text without a date, and close it."""
    import matplotlib.pyplot as plt

    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()) + "\n"


def headline_entry(study: Study, task: str, dataset: str) -> FigureEntry:
    """The figure that every table has: its headline metric, seeds as dots."""
    table = collect_table(study, task, dataset)
    label = table.metrics[0].label if table.metrics else ""
    return FigureEntry(
        name="headline",
        title=label[:1].upper() + label[1:] + " per method",
        caption="Each dot is a seed, each bar the mean.",
        alt=f"Dot plot of {label} for every method of {dataset}; the table holds the same numbers.",
        task=task,
        paper="",
        draw=draw_headline,
    )


def draw_headline(data: FigureData) -> Figure | None:
    """Dot plot of the first metric of the table."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import PercentFormatter

    table = collect_table(data.study, data.task, data.dataset)
    if not table.metrics:
        return None
    metric = table.metrics[0]
    rows = [row for row in table.rows if row.values(metric.name)]
    if not rows:
        return None
    figure, axes = plt.subplots(figsize=(7, 0.9 + 0.36 * len(rows)))
    for place, row in enumerate(reversed(rows)):
        values = list(row.values(metric.name).values())
        color = data.colors[row.name]
        mean = sum(values) / len(values)
        axes.plot([mean, mean], [place - 0.28, place + 0.28], color=color, linewidth=3, solid_capstyle="round")
        axes.scatter(values, [place] * len(values), color=color, s=34, alpha=0.65, edgecolor="white", linewidth=0.6, zorder=3)
    axes.set_yticks(range(len(rows)), [row.title for row in reversed(rows)])
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(metric.label)
    if metric.format.endswith("%"):
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    elif all(value > 0 for row in rows for value in row.values(metric.name).values()):
        every = [value for row in rows for value in row.values(metric.name).values()]
        if max(every) > 100 * min(every):
            axes.set_xscale("log")
    return figure
