"""The figures that every table has: the headline per method, and the headline against what it costs."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from atlas.harness.plots import FigureEntry
from atlas.harness.registry import Metric
from atlas.report.collect import Row, Table
from atlas.report.costs import training
from atlas.report.numbers import duration, quantity
from atlas.report.statistics import interval, mean_and_sd

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LABEL = 24  # characters in a line of a row's title
DECADES = 50  # values that differ by more are shown on a logarithmic axis
COUNTED, MEASURED = 1.05, 1.5  # costs that differ by less than this factor are not worth a figure, or are noise
TIME = Metric("train_seconds", "training time", "lower")


def headline_figure(table: Table, colors: Mapping[str, str]) -> FigureEntry | None:
    """Dot plot of the first metric: seeds as dots, the mean as a bar, its interval as a line."""
    metric = next(iter(table.metrics), None)
    if metric is None or not any(row.values(metric.name) for row in table.rows):
        return None
    means = [(row.title, mean_and_sd(list(row.values(metric.name).values()))[0]) for row in table.rows]
    listed = ", ".join(f"{title} {quantity(metric.format, mean)}" for title, mean in means if not math.isnan(mean))
    return FigureEntry(
        name="headline",
        title=_capital(metric.label),
        caption="Each dot is a seed, each bar the mean over seeds, each line its 95 % interval.",
        alt=f"Dot plot of {metric.label} per method on {table.dataset}. Means: {listed}.",
        task=table.task,
        paper="",
        draw=lambda data: draw_headline(table, metric, colors),
    )


def draw_headline(table: Table, metric: Metric, colors: Mapping[str, str]) -> Figure:
    """Draw a metric of every row as dots, one per seed, with the interval of the mean."""
    import matplotlib.pyplot as plt

    rows = [row for row in table.rows if row.values(metric.name)]
    figure, axes = plt.subplots(figsize=(6, 0.8 + 0.36 * len(rows)))
    for height, row in enumerate(reversed(rows)):
        values = list(row.values(metric.name).values())
        color = colors[row.name]
        bounds = interval(values)
        if bounds.bounded and bounds.low < bounds.high:
            axes.plot([bounds.low, bounds.high], [height, height], color=color, linewidth=1.2, alpha=0.55)
        axes.scatter(values, [height] * len(values), color=color, s=30, alpha=0.7, edgecolor="white", linewidth=0.6, zorder=3)
        axes.plot([bounds.mean] * 2, [height - 0.26, height + 0.26], color=color, linewidth=2.6, solid_capstyle="round", zorder=4)
    axes.set_yticks(range(len(rows)), [textwrap.fill(row.title, LABEL) for row in reversed(rows)])
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    every = [value for row in rows for value in row.values(metric.name).values()]
    _focus(axes, every)
    _scale_axis(axes, "x", metric, every)
    return figure


def _focus(axes: Axes, values: Sequence[float]) -> None:
    """Let the seeds fill the axis: an interval of few seeds may run out of it."""
    low, high = min(values), max(values)
    pad = 0.35 * (high - low) or 0.05 * abs(high) or 0.5
    axes.set_xlim(max(axes.get_xlim()[0], low - pad), min(axes.get_xlim()[1], high + pad))


@dataclass(frozen=True)
class RowCost:
    """What a row costs, on average over its seeds."""

    metric: Metric
    values: dict[str, float]


def cost_of(table: Table) -> RowCost | None:
    """The cost that tells rows apart: the first declared one that differs, else the time of training."""
    for metric in [*table.metrics, *table.timings]:
        if metric.is_cost:
            values = {row.name: _mean_cost(table, row, metric) for row in table.rows}
            if _differ(values, MEASURED if metric.measured else COUNTED):
                return RowCost(metric, values)
    seconds = {row.name: train_seconds(row) for row in table.rows}
    return RowCost(TIME, seconds) if _differ(seconds, MEASURED) else None


def _mean_cost(table: Table, row: Row, metric: Metric) -> float:
    """Mean cost of a row; of a training with that of the runs that it builds upon."""
    return training(table, row, metric).total if metric.is_training else mean_and_sd(list(row.values(metric.name).values()))[0]


def train_seconds(row: Row) -> float:
    """Mean time of training, ``nan`` where none is recorded."""
    recorded = [cell.seconds("train_seconds") for cell in row.cells]
    return mean_and_sd([value for value in recorded if value is not None])[0]


def _differ(values: Mapping[str, float], factor: float) -> bool:
    known = [value for value in values.values() if not math.isnan(value)]
    return len(known) > 1 and min(known) > 0 and max(known) > factor * min(known)


def cost_figure(table: Table, colors: Mapping[str, str]) -> FigureEntry | None:
    """Scatter plot of the headline against the cost that tells the rows apart."""
    metric, cost = next(iter(table.metrics), None), cost_of(table)
    if metric is None or cost is None or metric.better == "neither" or metric.name == cost.metric.name:
        return None
    points = [(row, cost.values[row.name], mean_and_sd(list(row.values(metric.name).values()))[0]) for row in table.rows]
    points = [(row, spent, value) for row, spent, value in points if not (math.isnan(spent) or math.isnan(value))]
    if len(points) < 2:
        return None
    where = " on the machine that ran it" if cost.metric is TIME else ""
    return FigureEntry(
        name="cost",
        title=f"{_capital(metric.label)} against {cost.metric.label}",
        caption=f"Means over seeds; {_better(metric)}, and less {cost.metric.label}{where} is better.{_included(cost.metric)}",
        alt=f"Scatter plot of {metric.label} against {cost.metric.label}, one point per method; the tables hold the numbers.",
        task=table.task,
        paper="",
        draw=lambda data: draw_cost(points, metric, cost.metric, colors),
    )


def _included(metric: Metric) -> str:
    """What a cost of training holds besides a row's own, as a sentence."""
    return " Runs that a row builds upon are counted with it." if metric.is_training else ""


def draw_cost(points: Sequence[tuple[Row, float, float]], metric: Metric, cost: Metric, colors: Mapping[str, str]) -> Figure:
    """Draw the scatter plot, with a legend below it."""
    import matplotlib.pyplot as plt

    columns = 2 if max(len(row.title) for row, _, _ in points) > LABEL else 3
    figure, axes = plt.subplots(figsize=(6, 3.0 + 0.22 * math.ceil(len(points) / columns)), layout="constrained")
    for index, (row, spent, value) in enumerate(points):
        marker = "osD^vP"[(index // 10) % 6]
        axes.scatter([spent], [value], color=colors[row.name], marker=marker, s=46, edgecolor="white", label=row.title, zorder=3)
    _scale_axis(axes, "x", cost, [spent for _, spent, _ in points])
    _scale_axis(axes, "y", metric, [value for _, _, value in points])
    figure.legend(loc="outside lower center", ncols=columns, handletextpad=0.2)
    return figure


def _scale_axis(axes: Axes, which: str, metric: Metric, values: Sequence[float]) -> None:
    """Label an axis in the metric's format; logarithmic where the values span decades."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, PercentFormatter

    axis = axes.xaxis if which == "x" else axes.yaxis
    axes.set(**{f"{which}label": metric.label})
    if min(values) > 0 and max(values) > DECADES * min(values):
        axes.set(**{f"{which}scale": "log"})
        axis.set_major_locator(LogLocator(numticks=8))
        axis.set_minor_formatter(NullFormatter())
        axis.set_major_formatter(FuncFormatter(lambda value, position: quantity(".3g", value)))
    elif metric is TIME:
        axis.set_major_formatter(FuncFormatter(lambda value, position: duration(value)))
    elif metric.format.endswith("%"):
        axis.set_major_formatter(PercentFormatter(1.0))
    elif max(map(abs, values)) >= 1e5 or max(map(abs, values)) < 1e-3:
        axis.set_major_formatter(FuncFormatter(lambda value, position: quantity(".4g", value)))


def _better(metric: Metric) -> str:
    return f"{metric.better} {metric.label}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
