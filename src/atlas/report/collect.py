"""Result files as they are: evaluated, failed, not finite, damaged or missing; nothing here raises for a bad file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from atlas.harness.registry import Metric
from atlas.harness.run import Run
from atlas.harness.stale import read_json, stale_metrics
from atlas.harness.study import Study

LOG_LINES = 12


@dataclass(frozen=True)
class Cell:
    """What is known of one run.

    Attributes
    ----------
    content : dict
        ``metrics.json``; empty if there is none that can be read.
    failure : dict
        ``failure.json``; empty if there is none.
    """

    run: Run
    content: dict[str, Any]
    failure: dict[str, Any]

    @cached_property
    def recorded(self) -> dict[str, Any]:
        """Every value of the evaluation, finite or not, timings included."""
        if self.failure or self.outdated:
            return {}  # what an earlier evaluation left is not this run's
        return {**_mapping(self.content.get("metrics")), **_mapping(self.content.get("timings"))}

    @cached_property
    def values(self) -> dict[str, float]:
        """Every finite number of the evaluation, timings included."""
        return {name: float(value) for name, value in self.recorded.items() if _finite(value)}

    @cached_property
    def outdated(self) -> str:
        """Why the evaluation that is there is not this run's, as it is planned now; empty if it is, or there is none."""
        return stale_metrics(self.run, self.content) or ""

    @property
    def provenance(self) -> dict[str, Any]:
        """Where the numbers come from: machine, code and costs of the run; empty if nothing is recorded."""
        return _mapping(self.content.get("provenance"))

    @property
    def settings(self) -> dict[str, Any]:
        """Protocol, settings and resources that were recorded."""
        return _mapping(self.content.get("settings"))

    def seconds(self, name: str) -> float | None:
        """A duration of the provenance, or ``None``."""
        value = self.provenance.get(name)
        return float(value) if isinstance(value, int | float) and _finite(value) else None

    @property
    def needed_seconds(self) -> dict[str, float]:
        """Training time of the runs that this one builds upon, by their cells."""
        needed = _mapping(self.provenance.get("needed_seconds"))
        return {cell: float(value) for cell, value in needed.items() if _finite(value)}

    @cached_property
    def state(self) -> str:
        """``"done"``, ``"failed"``, ``"out of date"``, ``"damaged"`` or ``"not run"``."""
        if self.failure:
            return "failed"
        if self.outdated:
            return "out of date"
        if self.content:
            return "done"
        return "damaged" if self.run.metrics.is_file() else "not run"

    @cached_property
    def problem(self) -> str:
        """Why a number of this run is missing or doubtful, in a few words; empty if nothing is."""
        if self.state == "done":
            return self._doubt()
        if self.state == "failed":
            return f"failed to {self.failure.get('stage', 'run')}: {self.failure.get('error', 'no reason was left')}"
        if self.outdated:
            return f"out of date: {self.outdated}"
        if self.state == "damaged":
            return "not run: its metrics.json is damaged"
        return "not run" + _blocked(self.run)

    def _doubt(self) -> str:
        """What is wrong with an evaluation that is there."""
        declared = [metric.name for metric in self.run.declared_metrics]
        bad = [name for name in declared if name in self.recorded and name not in self.values and name not in self.inapplicable]
        lacking = [name for name in declared if name not in self.recorded]
        doubts = [
            f"not finite: {', '.join(bad)}" if bad else "",
            f"lacks: {', '.join(lacking)}" if lacking else "",
        ]
        return "; ".join(filter(None, doubts))

    @cached_property
    def inapplicable(self) -> set[str]:
        """Metrics that may be missing and are: there is nothing here that they could measure, and nothing to doubt."""
        optional = {metric.name for metric in self.run.declared_metrics if metric.optional}
        return {name for name in optional if name in self.recorded and self.recorded[name] is None}

    def why_missing(self, metric: str) -> str:
        """Why this run has no value of a metric, in two words; empty if it has one or does not declare it."""
        if metric in self.values:
            return ""
        if self.state != "done":
            return self.state
        if metric in self.inapplicable:
            return "not applicable"
        return "not finite" if metric in self.recorded else "lacking"

    @property
    def log(self) -> str:
        """Path of the log of what failed, relative to the checkout; empty if none is known."""
        return str(self.failure.get("log", ""))

    @cached_property
    def tail(self) -> str:
        """The last lines that a failed run left: its traceback, or its job's log."""
        lines = self.failure.get("tail")
        if isinstance(lines, list):
            return "\n".join(map(str, lines))
        if lines:
            return str(lines)
        if self.content:
            return ""
        for name in ("evaluate.log", "train.log"):
            path = self.run.logs / name
            if path.is_file():
                return "\n".join(path.read_text(errors="replace").splitlines()[-LOG_LINES:])
        return ""


def _mapping(value: Any) -> dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else {}


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _blocked(run: Run) -> str:
    """Which run that this one needs has failed, as the end of a sentence."""
    for role, needed in run.needs.items():
        failure = read_json(needed.failure)
        if failure:
            return f": its {role}, {needed.cell}, failed: {failure.get('error', 'no reason was left')}"
        deeper = _blocked(needed)
        if deeper:
            return deeper
    return ""


@dataclass(frozen=True)
class Row:
    """One row of a table over its seeds."""

    name: str
    title: str
    role: str
    cells: list[Cell]
    metrics: tuple[Metric, ...]

    @cached_property
    def declared(self) -> dict[str, Metric]:
        """Metrics that the row's method declares, by their names."""
        return {metric.name: metric for metric in self.metrics}

    def values(self, metric: str) -> dict[int, float]:
        """Seed to value, for the seeds that have one."""
        return {cell.run.seed: cell.values[metric] for cell in self.cells if metric in cell.values}

    def why_missing(self, metric: str) -> dict[int, str]:
        """Seed to why it has no value of a metric, in two words; empty if the row does not declare the metric."""
        if metric not in self.declared:
            return {}
        reasons = {cell.run.seed: cell.why_missing(metric) for cell in self.cells}
        return {seed: reason for seed, reason in reasons.items() if reason}

    @property
    def evaluated(self) -> int:
        """Number of seeds that have been evaluated."""
        return sum(cell.state == "done" for cell in self.cells)

    @cached_property
    def problems(self) -> dict[int, str]:
        """Seed to reason, for the seeds that miss something."""
        return {cell.run.seed: cell.problem for cell in self.cells if cell.problem}


@dataclass(frozen=True)
class Table:
    """Every row of one (task, dataset), with the metrics that its rows declare.

    Attributes
    ----------
    stages : list of Row
        Runs whose artefacts the rows need; they do not compete, and leave no metrics unless they declare some.
    """

    study: Study
    task: str
    dataset: str
    rows: list[Row] = field(default_factory=list)
    stages: list[Row] = field(default_factory=list)

    @property
    def substitution(self) -> str:
        """That other data than the study names were read, in a sentence's words; empty where they were not."""
        rows = [*self.rows, *self.stages]
        return rows[0].cells[0].run.substitution if rows else ""

    @cached_property
    def metrics(self) -> list[Metric]:
        """Columns: the declared metrics of all rows, in order of declaration, measurements of time left out."""
        return [metric for metric in self._declared if not metric.measured]

    @cached_property
    def timings(self) -> list[Metric]:
        """Declared metrics that measure time."""
        return [metric for metric in self._declared if metric.measured]

    @cached_property
    def _declared(self) -> list[Metric]:
        return list({metric.name: metric for row in self.rows for metric in row.metrics}.values())

    def row(self, name: str) -> Row | None:
        """Return the row of that name, competitor or stage."""
        return next((row for row in [*self.rows, *self.stages] if row.name == name), None)

    @cached_property
    def problems(self) -> list[tuple[Row, Cell]]:
        """Every run that misses something: competitors, and stages that failed."""
        rows = [(row, cell) for row in self.rows for cell in row.cells if cell.problem]
        return rows + [(row, cell) for row in self.stages for cell in row.cells if cell.failure and cell.state != "done"]


def collect_cell(run: Run) -> Cell:
    """Read the metrics or the failure that a run has left."""
    return Cell(run, read_json(run.metrics), read_json(run.failure))


def collect_table(study: Study, task: str, dataset: str) -> Table:
    """Read every run of the table of a task and a dataset, rows and stages."""
    table = Table(study, task, dataset)
    for (row_task, row_dataset, name), runs in study.by_row.items():
        if (row_task, row_dataset) == (task, dataset):
            first = runs[0]
            row = Row(name, first.title, first.role, [collect_cell(run) for run in runs], first.declared_metrics)
            (table.stages if first.role == "stage" else table.rows).append(row)
    return table


def collect(study: Study) -> list[Table]:
    """Read every table of a study, in the order of the study."""
    return [collect_table(study, task, dataset) for task, dataset in study.tables]
