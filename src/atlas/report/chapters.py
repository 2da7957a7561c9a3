"""One benchmark of the page: its tables, figures, costs, gaps, settings and provenance, ready for a template."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from markupsafe import Markup, escape

from atlas.harness.registry import Metric
from atlas.report.collect import Cell, Row, Table
from atlas.report.costs import training
from atlas.report.figures import Drawn, figures
from atlas.report.inline import data_address, inline, is_wide
from atlas.report.numbers import duration, memory, metric_text
from atlas.report.statistics import mean_and_sd
from atlas.report.tables import Sheet, sheet_latex, shown_metrics, table_csv

PROVENANCE_COSTS: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("train_seconds", "training", duration),
    ("evaluate_seconds", "evaluation", duration),
    ("peak_memory_mebibytes", "peak memory", memory),
)


@dataclass(frozen=True)
class CostCell:
    """One cell of the costs; ``value`` sorts it, and is ``nan`` where nothing is known."""

    text: str
    value: float


@dataclass(frozen=True)
class PageFigure:
    """A figure with its HTML; a wide one takes the whole width of the page."""

    figure: Drawn
    html: Markup
    wide: bool


@dataclass(frozen=True)
class RowSettings:
    """What distinguishes one row: its methods' settings, where its protocol differs from the table's, and what makes it again."""

    title: str
    name: str
    items: list[tuple[str, str]]
    again: str


@dataclass(frozen=True)
class Chapter:
    """One table with everything around it."""

    table: Table

    @property
    def anchor(self) -> str:
        """Fragment of the page's address."""
        return f"{self.table.task}-{self.table.dataset}"

    @cached_property
    def drawn(self) -> list[Drawn]:
        """The figures of the table, drawn and with captions."""
        return figures(self.table)

    @cached_property
    def pictures(self) -> list[PageFigure]:
        """The figures, each with its HTML."""
        return [
            PageFigure(
                figure, Markup(inline(figure.svg, f"f{number}-{self.anchor}-", str(escape(figure.alt)))), is_wide(figure.svg)
            )
            for number, figure in enumerate(self.drawn)
        ]

    @cached_property
    def sheet(self) -> Sheet:
        """The main table, with the metrics of what is achieved rather than what it costs."""
        outcomes = [metric for metric in shown_metrics(self.table) if not metric.is_cost]
        return Sheet(self.table, outcomes or shown_metrics(self.table))

    @cached_property
    def cost_metrics(self) -> list[Metric]:
        """Declared costs, and measurements of time."""
        return [metric for metric in self.table.metrics if metric.is_cost] + self.table.timings

    @property
    def cost_header(self) -> list[str]:
        """Titles of the columns of the table of costs."""
        before = ["what it builds on"] if self.builds else []
        once = [f"{metric.label} in all" for metric in self.summed]
        return [*(metric.label for metric in self.cost_metrics), *once, *(label for _, label, _ in PROVENANCE_COSTS), *before]

    @cached_property
    def summed(self) -> list[Metric]:
        """Counts of training that leave out work which was done once before, in runs that a row builds upon."""
        counted = [metric for metric in self.cost_metrics if metric.is_training]
        return [metric for metric in counted if any(training(self.table, row, metric).before for row in self.table.rows)]

    @cached_property
    def builds(self) -> bool:
        """Whether a row builds on other runs."""
        return any(cell.needed_seconds for row in self.table.rows for cell in row.cells)

    @cached_property
    def costs(self) -> list[tuple[Row, list[CostCell]]]:
        """What every row costs; stages that left a record among them."""
        stages = [row for row in self.table.stages if row.evaluated]
        before = [_builds_on] if self.builds else []
        return [
            (
                row,
                [
                    *self._declared(row),
                    *self._summed(row),
                    *map(_recorded(row), PROVENANCE_COSTS),
                    *(cost(row) for cost in before),
                ],
            )
            for row in [*self.table.rows, *stages]
        ]

    def _declared(self, row: Row) -> list[CostCell]:
        statistics = [(metric, *mean_and_sd(list(row.values(metric.name).values()))) for metric in self.cost_metrics]
        return [CostCell(metric_text(metric, mean, sd), mean) for metric, mean, sd in statistics]

    def _summed(self, row: Row) -> list[CostCell]:
        trainings = [training(self.table, row, metric) for metric in self.summed]
        return [CostCell(metric_text(cost.metric, cost.total), cost.total) for cost in trainings]

    @property
    def state(self) -> str:
        """How many methods there are, and how many of their runs are evaluated, in words."""
        cells = [cell for row in self.table.rows for cell in row.cells]
        done = sum(cell.state == "done" for cell in cells)
        return f"{len(self.table.rows)} methods, {done} of {len(cells)} runs evaluated"

    @cached_property
    def downloads(self) -> list[tuple[str, str, str]]:
        """The table as files inside the page: name, label and data address."""
        files = (("csv", "text/csv", table_csv(self.table)), ("tex", "text/x-tex", self.latex))
        return [
            (f"{self.anchor}.{ending}", label, data_address(kind, text))
            for (ending, kind, text), label in zip(files, ("CSV", "LaTeX"), strict=True)
        ]

    @property
    def latex(self) -> str:
        """The main table in LaTeX, to put into a paper."""
        return sheet_latex(Sheet(self.table, shown_metrics(self.table)))

    @cached_property
    def protocol(self) -> list[tuple[str, str]]:
        """Settings of the protocol that all rows share, by name."""
        every = [protocol_of(row) for row in self.table.rows]
        return [item for item in every[0].items() if all(other.get(item[0]) == item[1] for other in every)] if every else []

    @cached_property
    def settings(self) -> list[RowSettings]:
        """Settings of each row beyond those that all share."""
        shared = dict(self.protocol)
        settings = []
        for row in [*self.table.rows, *self.table.stages]:
            own = {f"protocol.{name}": value for name, value in protocol_of(row).items() if shared.get(name) != value}
            settings.append(RowSettings(row.title, row.name, [*settings_of(row).items(), *own.items()], again(row)))
        return settings

    @cached_property
    def cells(self) -> list[tuple[Row, Cell]]:
        """Every evaluated run of the chapter, after the row to which it belongs."""
        rows = [*self.table.rows, *self.table.stages]
        return [(row, cell) for row in rows for cell in row.cells if cell.state == "done"]


def again(row: Row) -> str:
    """The command that trains and evaluates a row on all its seeds once more."""
    run = row.cells[0].run
    name = run.cell.rpartition("/")[0]
    return f"atlas train --tier {run.tier} --force --evaluate {shlex.quote(name)}"


def _recorded(row: Row) -> Callable[[tuple[str, str, Callable[[float], str]]], CostCell]:
    """Mean of something that every run records about itself."""

    def cost(column: tuple[str, str, Callable[[float], str]]) -> CostCell:
        name, _, show = column
        values = [value for cell in row.cells if (value := cell.seconds(name)) is not None]
        mean = mean_and_sd(values)[0]
        return CostCell(show(mean) if values else "–", mean)

    return cost


def _builds_on(row: Row) -> CostCell:
    """Mean training time of the runs that a row builds upon."""
    values = [sum(cell.needed_seconds.values()) for cell in row.cells if cell.needed_seconds]
    mean = mean_and_sd(values)[0]
    return CostCell(duration(mean) if values else "–", mean)


def protocol_of(row: Row) -> dict[str, str]:
    """The protocol of a row as it ran, or as it is planned; nested names joined by dots."""
    recorded = next((cell.settings.get("protocol") for cell in row.cells if cell.settings), None)
    return flat(recorded if isinstance(recorded, Mapping) else row.cells[0].run.protocol)


def settings_of(row: Row) -> dict[str, str]:
    """The methods' settings of a row; prefixed by the method in a recipe of several."""
    run = row.cells[0].run
    if len(run.recipe) == 1:
        return flat(run.settings.get(run.recipe[0], {}))
    return flat({name: run.settings.get(name, {}) for name in run.recipe})


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return nested settings as texts by dotted name."""
    entries: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            entries.update(flat(value, f"{prefix}{key}."))
        else:
            entries[f"{prefix}{key}"] = value if isinstance(value, str) and value else json.dumps(value)
    return entries
