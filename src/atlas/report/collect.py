"""Result files as they are: evaluated, failed, not finite, or missing; nothing here raises for a bad file."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from atlas.harness.registry import Metric
from atlas.harness.stale import read_json, stale_metrics
from atlas.harness.study import Run, Study


@dataclass(frozen=True)
class Cell:
    """What is known of one run.

    Attributes
    ----------
    content : dict
        ``metrics.json``; empty if there is none.
    failure : dict
        ``failure.json``; empty if there is none.
    """

    run: Run
    content: dict[str, Any]
    failure: dict[str, Any]

    @cached_property
    def values(self) -> dict[str, float]:
        """Every finite number of the evaluation, timings included."""
        merged = {**self.content.get("metrics", {}), **self.content.get("timings", {})}
        return {name: float(value) for name, value in merged.items() if _finite(value)}

    @property
    def provenance(self) -> dict[str, Any]:
        """Where the numbers come from."""
        return self.content.get("provenance", {})

    @property
    def problem(self) -> str:
        """Why a number of this run is missing, in a few words; empty if nothing is."""
        if self.content:
            bad = [name for name, value in self.content.get("metrics", {}).items() if not _finite(value)]
            if bad:
                return f"not finite: {', '.join(bad)}"
            reason = stale_metrics(self.run)
            return f"out of date: {reason}" if reason else ""
        if self.failure:
            return f"failed to {self.failure.get('stage', 'run')}: {self.failure.get('error', 'no reason was left')}"
        return "not run"


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


@dataclass(frozen=True)
class Row:
    """One row of a table over its seeds."""

    name: str
    title: str
    role: str
    cells: list[Cell]
    metrics: tuple[Metric, ...]

    def values(self, metric: str) -> dict[int, float]:
        """Seed to value, for the seeds that have one."""
        return {cell.run.seed: cell.values[metric] for cell in self.cells if metric in cell.values}

    @property
    def problems(self) -> dict[int, str]:
        """Seed to reason, for the seeds that miss something."""
        return {cell.run.seed: cell.problem for cell in self.cells if cell.problem}


@dataclass(frozen=True)
class Table:
    """Every row of one (task, dataset), with the metrics that its rows declare."""

    study: Study
    task: str
    dataset: str
    rows: list[Row] = field(default_factory=list)

    @property
    def metrics(self) -> list[Metric]:
        """Columns: the declared metrics of all rows, in order of declaration, measurements of time left out."""
        declared = dict.fromkeys(metric for row in self.rows for metric in row.metrics if not metric.measured)
        return list({metric.name: metric for metric in declared}.values())

    @property
    def timings(self) -> list[Metric]:
        """Declared measurements of time."""
        declared = dict.fromkeys(metric for row in self.rows for metric in row.metrics if metric.measured)
        return list({metric.name: metric for metric in declared}.values())

    def row(self, name: str) -> Row | None:
        """Return the row of that name."""
        return next((row for row in self.rows if row.name == name), None)


def collect_cell(run: Run) -> Cell:
    """Read what a run has left."""
    return Cell(run, read_json(run.metrics), read_json(run.failure))


def collect_table(study: Study, task: str, dataset: str) -> Table:
    """Read every run of a table; stages have no row."""
    rows = []
    for (row_task, row_dataset, name), runs in study.by_row.items():
        if (row_task, row_dataset) == (task, dataset) and runs[0].role != "stage":
            first = runs[0]
            rows.append(Row(name, first.title, first.role, [collect_cell(run) for run in runs], first.declared_metrics))
    return Table(study, task, dataset, rows)


def collect(study: Study) -> list[Table]:
    """Read every table of a study."""
    return [collect_table(study, task, dataset) for task, dataset in study.tables]
