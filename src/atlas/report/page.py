"""The page that a reader opens first: ``report.html``, self-contained, and the same content as ``report.md``."""

from __future__ import annotations

import base64
import math
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from atlas.harness.files import write_text
from atlas.harness.registry import Metric, load
from atlas.harness.stale import read_json, table_matches
from atlas.harness.study import Study
from atlas.report.collect import Cell, Row, Table, collect
from atlas.report.series import write_series
from atlas.report.statistics import mean_and_sd
from atlas.report.tables import (
    Entry,
    baseline_name,
    entries,
    formatted,
    reported_numbers,
    seeds_text,
    shown_metrics,
    table_markdown,
)
from atlas.report.verdicts import VERDICTS, Judged, asked, claims_markdown, judge_all, shown_effect

LOG_LINES = 12
COST_METRICS = ("parameters", "forward_flops", "train_flops")


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


@dataclass(frozen=True)
class Picture:
    """A figure as the page shows it; ``source`` is a data URI."""

    title: str
    caption: str
    alt: str
    source: str
    path: str


@dataclass(frozen=True)
class Chapter:
    """One table with everything around it."""

    table: Table

    @property
    def anchor(self) -> str:
        """Fragment of the page's address."""
        return f"{self.table.task}-{self.table.dataset}"

    @cached_property
    def metrics(self) -> list[Metric]:
        """Columns of the main table."""
        return shown_metrics(self.table)

    @cached_property
    def lines(self) -> list[tuple[Row, list[Entry]]]:
        """Rows with their cells."""
        return list(zip(self.table.rows, entries(self.table, self.metrics), strict=True))

    @cached_property
    def reported(self) -> dict[str, str]:
        """What papers print, by row."""
        return reported_numbers(self.table)

    @property
    def baseline(self) -> str:
        """Row that the others are compared with."""
        return baseline_name(self.table)

    def seeds(self, row: Row) -> str:
        """Number of seeds of a row."""
        return seeds_text(row)

    @cached_property
    def costs(self) -> list[tuple[str, list[str]]]:
        """Time, memory and measured speed of every row."""
        lines = []
        for row in self.table.rows:
            texts = [_mean_of(row, "train_seconds", duration), _mean_of(row, "evaluate_seconds", duration)]
            texts.append(_mean_of(row, "peak_memory_mebibytes", lambda value: f"{value:,.0f} MiB"))
            for metric in self.table.timings:
                texts.append(formatted(metric, *mean_and_sd(list(row.values(metric.name).values()))))
            lines.append((row.title, texts))
        return lines

    @property
    def cost_header(self) -> list[str]:
        """Columns of the costs."""
        return ["training", "evaluation", "peak memory", *(metric.label for metric in self.table.timings)]

    @cached_property
    def problems(self) -> list[tuple[Row, Cell, str]]:
        """What is missing or wrong, with the end of the log."""
        return [(row, cell, log_tail(cell)) for row in self.table.rows for cell in row.cells if cell.problem]

    @property
    def outdated(self) -> bool:
        """Whether the table's files were made of other metrics than are there now."""
        return table_matches(self.table.study, self.table.task, self.table.dataset) is False

    @cached_property
    def pictures(self) -> list[Picture]:
        """The figures that have been drawn."""
        folder = self.table.study.results / "figures" / self.table.task / self.table.dataset
        found = []
        for item in read_json(folder / "index.json").get("figures", []):
            path = folder / f"{item['name']}.svg"
            if path.is_file():
                source = "data:image/svg+xml;base64," + base64.b64encode(path.read_bytes()).decode()
                shown = path.relative_to(self.table.study.results).as_posix()
                found.append(Picture(item["title"], item["caption"], item["alt"], source, shown))
        return found

    @cached_property
    def provenance(self) -> list[tuple[str, str]]:
        """Settings and provenance of every row, as text."""
        import json

        lines = []
        for row in self.table.rows:
            cell = next((cell for cell in row.cells if cell.content), None)
            if cell is not None:
                shown = {"settings": cell.content.get("settings"), "provenance": cell.provenance}
                lines.append((f"{row.title} ({cell.run.cell})", json.dumps(shown, indent=1)))
        return lines


def _mean_of(row: Row, name: str, show: Any) -> str:
    values = [cell.provenance[name] for cell in row.cells if isinstance(cell.provenance.get(name), int | float)]
    return show(sum(values) / len(values)) if values else "–"


def log_tail(cell: Cell) -> str:
    """The last lines that a failed run left: its traceback, or its job's log."""
    if cell.failure.get("tail"):
        return "\n".join(map(str, cell.failure["tail"]))
    for name in ("train.log", "evaluate.log"):
        path = cell.run.logs / name
        if path.is_file() and not cell.content:
            return "\n".join(path.read_text(errors="replace").splitlines()[-LOG_LINES:])
    return ""


class Overview:
    """The first screen: what was run, when, on what, how long, and which claims held."""

    def __init__(self, study: Study, tables: list[Table], judged: list[Judged]) -> None:
        self.study, self.judged = study, judged
        cells = [cell for table in tables for row in table.rows for cell in row.cells]
        self.planned = len(cells)
        self.done = sum(1 for cell in cells if cell.content and not cell.problem)
        self.failed = sum(1 for cell in cells if cell.failure and not cell.content)
        self.sources = [cell.provenance for cell in cells if cell.content]

    @property
    def facts(self) -> list[tuple[str, str]]:
        """Term and description of each fact."""
        seconds = sum((source.get("train_seconds") or 0) + (source.get("evaluate_seconds") or 0) for source in self.sources)
        days = sorted({str(source.get("finished", ""))[:10] for source in self.sources} - {""})
        facts = [
            ("runs", f"{self.done} of {self.planned} evaluated" + (f", {self.failed} failed" if self.failed else "")),
            ("seeds", ", ".join(map(str, self.study.seeds))),
            ("computing", duration(seconds)),
            ("finished", days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}" if days else "–"),
            ("hardware", self._common("hardware")),
            ("code", self._commit()),
            ("packages", self._packages()),
        ]
        return [(term, text) for term, text in facts if text]

    def _common(self, key: str) -> str:
        return "; ".join(name for name, _ in Counter(str(source.get(key)) for source in self.sources).most_common(3))

    def _commit(self) -> str:
        marks = {(str(source.get("git_commit"))[:10], bool(source.get("git_dirty"))) for source in self.sources}
        return ", ".join(commit + (" with local changes" if dirty else "") for commit, dirty in sorted(marks))

    def _packages(self) -> str:
        versions = self.sources[0].get("packages", {}) if self.sources else {}
        return ", ".join(f"{name} {versions[name]}" for name in ("torch", "timm", "numpy") if name in versions)

    @property
    def counts(self) -> list[tuple[str, int]]:
        """Number of claims per verdict."""
        found = Counter(one.verdict for one in self.judged)
        return [(name, found[name]) for name in VERDICTS]


def write_report(study: Study) -> Path:
    """Write ``report.html``, ``report.md`` and the series for DVC from whatever has been evaluated.

    Returns
    -------
    Path
        The page.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

    tables = collect(study)
    judged = judge_all(study)
    environment = Environment(
        loader=PackageLoader("atlas.report"),
        autoescape=select_autoescape(default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    registry = load()
    page = environment.get_template("report.html").render(
        study=study,
        overview=Overview(study, tables, judged),
        judged=judged,
        papers=registry.papers,
        chapters=[(registry.task(task), [Chapter(table) for table in tables if table.task == task]) for task in study.tasks],
        asked=asked,
        shown_effect=shown_effect,
        isnan=math.isnan,
    )
    path = study.results / "report.html"
    write_text(path, page)
    write_text(study.results / "report.md", markdown(study, tables, judged))
    write_series(study)
    return path


def markdown(study: Study, tables: list[Table], judged: list[Judged]) -> str:
    """The report's content for terminals and pull requests."""
    registry = load()
    overview = Overview(study, tables, judged)
    parts = [f"# Atlas, {study.tier} tier\n\n{study.description}\n\n"]
    parts += [f"- {term}: {text}\n" for term, text in overview.facts]
    parts.append("\n" + claims_markdown(study, judged).replace("# Claims", "## Claims", 1))
    for task in study.tasks:
        parts.append(f"\n## {registry.task(task).title}\n\n{registry.task(task).question}\n")
        for table in tables:
            if table.task == task:
                parts.append(f"\n### {table.dataset}\n\n{table_markdown(table)}")
                parts += [f"\n![{picture.alt}]({picture.path})\n" for picture in Chapter(table).pictures]
    return "".join(parts)
