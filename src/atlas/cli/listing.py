"""``atlas list``: what there is, as tables on a terminal and as tab-separated lines in a pipe."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from atlas.errors import UserError, did_you_mean
from atlas.harness.registry import load
from atlas.study import Agenda, Run, Study, agenda

Rows = tuple[tuple[str, ...], Iterable[tuple[str, ...]]]


def show(what: str, tier: str) -> None:
    """Print one listing: a table on a terminal, and otherwise tab-separated lines for other programs."""
    if what not in LISTINGS:
        raise UserError(f"atlas list {what}: {did_you_mean(what, LISTINGS)}")
    header, rows = LISTINGS[what](tier)
    if not sys.stdout.isatty():
        for row in rows:
            print("\t".join(row))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(*header, box=None, header_style="bold", pad_edge=False)
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def papers(tier: str) -> Rows:
    """List the papers that have a folder of methods: name, title and citation."""
    by_slug = sorted(load().papers.values(), key=lambda paper: paper.slug)
    return ("paper", "title", "citation"), [(paper.slug, paper.title, paper.citation) for paper in by_slug]


def tasks(tier: str) -> Rows:
    """List the tasks with the questions that they ask."""
    return ("task", "question"), [(task.name, task.question) for task in load().tasks.values()]


def methods(tier: str) -> Rows:
    """List every registered method: its task, name, paper, role and summary."""
    rows = [(entry.task, entry.name, entry.paper or "-", entry.role, entry.summary) for entry in load().all_methods()]
    return ("task", "method", "paper", "role", "what it does"), sorted(rows)


def datasets(tier: str) -> Rows:
    """Every dataset, and whether it has been acquired here."""
    from atlas.datasets import dataset_names, get_dataset

    rows = []
    for name in dataset_names():
        state = "acquired" if Path("data", name, "manifest.json").is_file() else "-"
        dataset = get_dataset(name)
        rows.append((name, dataset.kind, state, dataset.title))
    return ("dataset", "kind", "here", "title"), rows


def claims(tier: str) -> Rows:
    """List every claim, in the words of its paper."""
    from atlas.harness.claims import load_claims

    rows = [(claim.id, claim.paper, claim.statement) for claim in load_claims()]
    return ("claim", "paper", "statement"), rows


def backbones(tier: str) -> Rows:
    """Every family of transformers in the installed timm, and what each method says of it."""
    from atlas.cli.backbones import rows

    return rows()


def runs(tier: str) -> Rows:
    """Every run of the study, how far it is, and why something is to be done for it."""
    todo = agenda(Study.read(tier))
    planned = todo.runs
    rows = []
    for run in todo.study.runs:
        old = todo.old_code.get(run.cell)
        why = planned.get(run.cell, "") or (f"trained with other code of {', '.join(old)}" if old else "")
        rows.append((run.cell, _state(run, todo), why))
    return ("run", "state", "why"), rows


def _state(run: Run, todo: Agenda) -> str:
    """How far a run is, in a word or two."""
    if run.cell not in todo.runs:
        return "evaluated" if run.metrics.is_file() else "trained" if run.record.is_file() else "not needed"
    if run.failure.is_file():
        return "failed"
    if (run.checkpoint / "state").is_dir():
        return "started"
    if run.cell not in todo.training:
        return "trained"
    return "out of date" if run.metrics.is_file() or run.record.is_file() else "missing"


LISTINGS: dict[str, Callable[[str], Rows]] = {
    "papers": papers,
    "tasks": tasks,
    "methods": methods,
    "datasets": datasets,
    "claims": claims,
    "runs": runs,
    "backbones": backbones,
}
