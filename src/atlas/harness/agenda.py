"""What there is to do in a study, and why: the one answer that Snakemake, DVC and the command line give.

Planned is what is missing, has failed, or was made with other settings, other data or other needs, and whatever must be there
for that: a run whose weights another one reads, a dataset, the tables and the page that show the numbers. Nothing else is.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from atlas.datasets import get_dataset, stale_data
from atlas.harness.code import changed_code
from atlas.harness.files import sha256, write_json, write_text
from atlas.harness.run import Run
from atlas.harness.selection import select
from atlas.harness.stale import evaluation_gap, page_gap, read_json, stale_record, table_gap, training_gap
from atlas.harness.study import Study

MARKER = Path(".atlas/due")
MADE = Path(".atlas/made")


@dataclass(frozen=True)
class Demands:
    """What a person asks for beyond what the files say.

    Attributes
    ----------
    everything : bool
        Every run is trained again.
    here : bool
        What was not made on this machine is made again, also where it fits the plan; also what it needs.
    new_code : bool
        Runs whose code has changed since they were trained are trained again; also those that they need.
    only : tuple of str
        Patterns (:mod:`atlas.harness.selection`): nothing is planned but the runs that fit, what they need, their tables and the
        page. Empty stands for the whole study.
    """

    everything: bool = False
    here: bool = False
    new_code: bool = False
    only: tuple[str, ...] = ()


@dataclass(frozen=True)
class Agenda:
    """Everything that is to be done in a study.

    Attributes
    ----------
    datasets : dict
        Dataset to why it must be acquired.
    training, evaluation : dict
        Run's cell to why it must be trained, evaluated.
    tables : dict
        (task, dataset) to why the table must be written.
    page : str
        Why verdicts and page must be written; empty if they need not.
    old_code : dict
        Cell to packages whose code has changed since the run was trained; told, not rerun.
    """

    study: Study
    datasets: Mapping[str, str] = field(default_factory=dict)
    training: Mapping[str, str] = field(default_factory=dict)
    evaluation: Mapping[str, str] = field(default_factory=dict)
    tables: Mapping[tuple[str, str], str] = field(default_factory=dict)
    page: str = ""
    old_code: Mapping[str, list[str]] = field(default_factory=dict)

    @property
    def runs(self) -> dict[str, str]:
        """Cell to why something must be done for the run, in the study's order."""
        return {
            run.cell: self.evaluation.get(run.cell) or self.training[run.cell]
            for run in self.study.runs
            if run.cell in self.training or run.cell in self.evaluation
        }

    @property
    def anything(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.training or self.evaluation or self.tables or self.page)

    def lines(self) -> list[str]:
        """Say in a few lines what there is to do and why, and what was trained with other code."""
        parts = []
        for verb, which in (("train", self.training), ("evaluate", self.evaluation)):
            only = {cell: why for cell, why in which.items() if verb == "train" or cell not in self.training}
            if only:
                reasons = Counter(why.split(":")[0] for why in only.values()).most_common()
                parts.append(f"{len(only)} to {verb} ({', '.join(f'{count} {why}' for why, count in reasons)})")
        parts += [f"{name} to acquire ({why})" for name, why in self.datasets.items()]
        text = [f"{len(self.study.runs)} runs: {'; '.join(parts)}"] if parts else []
        return text + self.code_lines()

    def code_lines(self) -> list[str]:
        """One line on runs that were trained with other code, and the command that trains them again; none if there are none."""
        if not self.old_code:
            return []
        rows = dict.fromkeys(cell.rpartition("/")[0] for cell in self.old_code)
        shown = ", ".join(list(rows)[:3]) + (f" and {len(rows) - 3} more rows" if len(rows) > 3 else "")
        packages = ", ".join(sorted({name for names in self.old_code.values() for name in names}))
        tier = "" if self.study.tier == "demo" else f"tier={self.study.tier} "
        return [
            f"{len(self.old_code)} runs were trained with other code of {packages} ({shown}); "
            f"to train them again: snakemake --config {tier}code=new"
        ]

    def mark(self) -> None:
        """Leave a marker, newer and other than ever, which the jobs of the agenda wait for: Snakemake then does them."""
        write_text(self.study.root / MARKER, f"{time.time_ns()}\n")


def agenda(study: Study, demands: Demands | None = None) -> Agenda:
    """Find out what there is to do in a study; reads small files only, and imports no numerical library."""
    return _Planner(study, demands or Demands()).agenda()


@dataclass
class _Planner:
    study: Study
    demands: Demands
    training: dict[str, str] = field(default_factory=dict)
    evaluation: dict[str, str] = field(default_factory=dict)

    def agenda(self) -> Agenda:
        chosen = self.chosen
        old_code = {run.cell: names for run in chosen if (names := trained_with_other_code(run))}
        looks = self.looks()
        for run in chosen:
            self.consider(run, looks.get(run.data, ""))
        for run in self.foundation:
            if demand := self.demanded(run):
                self.train(run, demand)
        self.follow()
        planned = {*self.training, *self.evaluation}
        shown = dict.fromkeys((run.task, run.dataset) for run in chosen)
        tables = {(task, dataset): reason for task, dataset in shown if (reason := self.table(task, dataset, planned))}
        page = "its tables are written again" if tables else page_gap(self.study) or ""
        used = {run.data for run in self.study.runs if run.cell in planned and run.data}
        waiting = {name: looks[name] for name in sorted(used) if name in looks}
        waiting |= {
            name: "not acquired" for name in sorted(used) if not (self.study.root / "data" / name / "manifest.json").is_file()
        }
        if self.demands.new_code or self.demands.everything:
            old_code = {}
        training = {run.cell: self.training[run.cell] for run in self.study.runs if run.cell in self.training}
        return Agenda(self.study, waiting, training, self.evaluation, tables, page, old_code)

    @cached_property
    def chosen(self) -> list[Run]:
        """The runs that are asked for."""
        return select(self.study, self.demands.only) if self.demands.only else list(self.study.runs)

    @cached_property
    def foundation(self) -> list[Run]:
        """The runs that those that are asked for build upon, directly or by others."""
        found: dict[str, Run] = {}
        waiting = list(self.chosen)
        while waiting:
            for needed in waiting.pop().needs.values():
                if needed.cell not in found:
                    found[needed.cell] = needed
                    waiting.append(needed)
        return list(found.values())

    def looks(self) -> dict[str, str]:
        """Acquired datasets that no longer look as they were described, and why.

        Whether their contents are others is known when they have been acquired again; a run that still fits then is left alone.
        Of a person's own data it is nearly certain, and their runs are planned to be trained.
        """
        reasons = {name: stale_data(name, self.study.root / "data") for name in self.study.datasets}
        return {name: reason for name, reason in reasons.items() if reason}

    def consider(self, run: Run, look: str) -> None:
        """Plan what a run itself calls for."""
        demand = "asked for" if self.demands.everything else self.demanded(run)
        copied_anew = look if look and get_dataset(run.data).made_of else ""
        outdated = stale_record(run) or copied_anew
        gap = evaluation_gap(run) or ""
        if reason := demand or outdated:
            self.train(run, reason)
        elif gap or (look and run.declared_metrics):
            self.evaluation[run.cell] = gap or look
            self.require(run)

    def demanded(self, run: Run) -> str:
        """Why a run that fits the plan is not what a person asks for, for its own sake or to build upon; or nothing."""
        if self.demands.new_code and trained_with_other_code(run):
            return "its code changed"
        here = made_here(run, "record", run.record) and (not run.declared_metrics or made_here(run, "metrics", run.metrics))
        return "not made on this machine" if self.demands.here and not here else ""

    def train(self, run: Run, reason: str) -> None:
        """Plan a training, the evaluation that belongs to it, and what it needs."""
        self.training.setdefault(run.cell, reason)
        if run.declared_metrics:
            self.evaluation.setdefault(run.cell, evaluation_gap(run) or reason)
        for needed in run.needs.values():
            self.require(needed)

    def require(self, run: Run) -> None:
        """Plan the training of a run whose weights are asked for, unless they are there."""
        if run.cell not in self.training and (reason := training_gap(run)):
            self.train(run, reason)

    def follow(self) -> None:
        """Plan what builds upon a run whose training is there and is done again."""
        again = True
        while again:
            again = False
            for run in (*self.foundation, *self.chosen):
                if run.cell in self.training or not run.record.is_file():
                    continue
                for role, needed in run.needs.items():
                    if needed.cell in self.training and needed.record.is_file():
                        self.train(run, f"its {role}, {needed.cell}, is trained again")
                        again = True
                        break

    def table(self, task: str, dataset: str, planned: set[str]) -> str | None:
        if any(run.cell in planned for run in self.study.matching(task, dataset)):
            return "its runs are made again"
        return table_gap(self.study, task, dataset)


def trained_with_other_code(run: Run) -> list[str]:
    """Packages whose code has changed since a run was trained; empty if it was not, or none has."""
    recorded = read_json(run.record) or read_json(run.metrics)
    provenance = recorded.get("provenance")
    return changed_code(run, provenance.get("code")) if isinstance(provenance, dict) else []


def made_here(run: Run, name: str, path: Path) -> bool:
    """Whether a file of a run is the one that was written on this machine."""
    return path.is_file() and read_json(_made(run)).get(name) == sha256(path)


def note_made_here(run: Run, name: str, path: Path) -> None:
    """Remember that a file of a run was written on this machine; ``name`` is ``record`` or ``metrics``."""
    write_json(_made(run), {**read_json(_made(run)), name: sha256(path)})


def _made(run: Run) -> Path:
    return run.root / MADE / run.place / f"{run.cell}.json"
