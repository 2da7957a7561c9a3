"""What a training takes, with the runs that it builds upon: a compressed network starts from a dense one that had to be trained.

Work is counted by the first metric of :data:`atlas.harness.registry.TRAINING` that a row declares (operations, rays, windows).
Work that is done once, in runs that a row needs, stands apart from the row's own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from atlas.harness.registry import Metric
from atlas.harness.run import Run
from atlas.report.collect import Row, Table
from atlas.report.numbers import effect_text, metric_text
from atlas.report.statistics import mean_and_sd

EQUAL = 1.1
"""Costs that differ by no more than this factor are equal."""


@dataclass(frozen=True)
class TrainingCost:
    """Work of a row's training, on average over its seeds.

    Attributes
    ----------
    own, before : float
        In the row's own runs, and once in the runs that it builds upon.
    uncounted : tuple of str
        Titles of rows that it builds upon whose work is not counted in this unit.
    """

    metric: Metric
    own: float
    before: float
    uncounted: tuple[str, ...]

    @property
    def total(self) -> float:
        """Work of the row's own runs and of those that it builds upon."""
        return self.own + self.before

    @property
    def text(self) -> str:
        """Own work and, apart from it, what was done once before."""
        own = metric_text(self.metric, self.own)
        return f"{own} + {metric_text(self.metric, self.before)} once before" if self.before else own


def training(table: Table, row: Row, metric: Metric) -> TrainingCost:
    """What the training of a row takes, counted by a metric."""
    own = row.values(metric.name)
    before: list[float] = []
    uncounted: dict[str, None] = {}
    for cell in row.cells:
        if cell.run.seed not in own:
            continue
        earlier = 0.0
        for needed in needs(cell.run):
            source = table.row(needed.method)
            value = source.values(metric.name).get(needed.seed) if source else None
            if value is None:
                uncounted[source.title if source else needed.method] = None
            earlier += value or 0.0
        before.append(earlier)
    return TrainingCost(metric, mean_and_sd(list(own.values()))[0], mean_and_sd(before)[0], tuple(uncounted))


def needs(run: Run) -> list[Run]:
    """Every run that a run builds upon, near and far, once each."""
    runs: dict[str, Run] = {}
    for needed in run.needs.values():
        runs[needed.cell] = needed
        runs.update({further.cell: further for further in needs(needed)})
    return list(runs.values())


@dataclass(frozen=True)
class Costs:
    """What training takes on the two sides of a comparison."""

    ours: TrainingCost
    theirs: TrainingCost

    @property
    def ratio(self) -> float:
        """Our cost in units of theirs; ``nan`` where theirs is nothing."""
        return self.ours.total / self.theirs.total if self.theirs.total else math.nan

    @property
    def equal(self) -> bool:
        """Whether they are the same within :data:`EQUAL`."""
        return 1 / EQUAL <= self.ratio <= EQUAL

    @property
    def text(self) -> str:
        """The costs of both sides in words, and whether they are equal."""
        sides = f"{self.ours.metric.label}: {self.ours.text} against {self.theirs.text}"
        if math.isnan(self.ratio):
            return sides
        verdict = "equal within 10 %" if self.equal else f"{effect_text(None, 'ratio', self.ratio)} ×"
        common = set(self.ours.uncounted) & set(self.theirs.uncounted)
        apart = [name for name in (*self.ours.uncounted, *self.theirs.uncounted) if name not in common]
        left_out = f"; not counted: {', '.join(apart)}" if apart else ""
        return f"{sides} ({verdict}{left_out})"


def costs(table: Table, method: Row, baseline: Row) -> Costs | None:
    """What two rows take, in the first unit of training that both declare and have; ``None`` where there is none."""
    shared = (metric for metric in method.metrics if metric.is_training and metric.name in baseline.declared)
    for metric in shared:
        ours, theirs = (training(table, row, metric) for row in (method, baseline))
        if not (math.isnan(ours.own) or math.isnan(theirs.own)):
            return Costs(ours, theirs)
    return None
