"""``atlas list``: what there is, as tables on a terminal and as tab-separated lines in a pipe."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from atlas.errors import UserError, did_you_mean
from atlas.harness.registry import load
from atlas.study import Study

Rows = tuple[tuple[str, ...], Iterable[tuple[str, ...]]]


def show(what: str, tier: str) -> None:
    """Print one listing."""
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
    """The papers that have a folder."""
    found = sorted(load().papers.values(), key=lambda paper: paper.slug)
    return ("paper", "title", "citation"), [(paper.slug, paper.title, paper.citation) for paper in found]


def tasks(tier: str) -> Rows:
    """The tasks and their questions."""
    return ("task", "question"), [(task.name, task.question) for task in load().tasks.values()]


def methods(tier: str) -> Rows:
    """Every registered method."""
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
    """Every claim, as its paper states it."""
    from atlas.harness.claims import load_claims

    rows = [(claim.id, claim.paper, claim.statement) for claim in load_claims()]
    return ("claim", "paper", "statement"), rows


def runs(tier: str) -> Rows:
    """Every run of the study, and how far it is."""
    rows = []
    for run in Study.read(tier).runs:
        if run.failure.is_file():
            state = "failed"
        elif run.metrics.is_file():
            state = "evaluated"
        elif run.record.is_file():
            state = "trained"
        elif (run.checkpoint / "state").is_dir():
            state = "started"
        else:
            state = "-"
        rows.append((run.cell, state))
    return ("run", "state"), rows


LISTINGS: dict[str, Callable[[str], Rows]] = {
    "papers": papers,
    "tasks": tasks,
    "methods": methods,
    "datasets": datasets,
    "claims": claims,
    "runs": runs,
}
