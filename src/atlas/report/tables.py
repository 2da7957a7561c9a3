"""Comparison tables as CSV, Markdown and LaTeX: mean ± standard deviation over seeds, the best of a column marked."""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from atlas.harness.claims import Reported, load_reported
from atlas.harness.files import write_json, write_text
from atlas.harness.registry import Metric, load
from atlas.harness.stale import metrics_digest
from atlas.harness.study import Study
from atlas.report.collect import Row, Table, collect_table
from atlas.report.costs import training
from atlas.report.latex import table_latex
from atlas.report.markdown import escape, grid
from atlas.report.numbers import metric_text
from atlas.report.statistics import Interval, difference, excludes_zero, mean_and_sd

COMMON = ("method", "title", "role", "n_seeds")


@dataclass(frozen=True)
class Entry:
    """One cell of a table.

    Attributes
    ----------
    text : str
        Mean ± standard deviation, formatted; why there is none where there is none.
    note : str
        Number of seeds, where it is less than planned.
    best : bool
        Best mean of its column.
    difference : Interval, optional
        Paired difference from the baseline row; ``None`` for the baseline itself, and for a count of training that leaves out
        runs that a row builds upon.
    reported : str
        What a paper prints for it; empty if none does.
    """

    mean: float
    sd: float
    count: int
    text: str
    note: str = ""
    best: bool = False
    difference: Interval | None = None
    reported: str = ""

    @property
    def significant(self) -> bool:
        """Whether the paired interval of the difference from the baseline excludes 0."""
        return self.difference is not None and excludes_zero(self.difference)


@dataclass(frozen=True)
class Quoted:
    """A row that only papers print: it is not run here."""

    title: str
    texts: dict[str, str]
    source: str


@dataclass(frozen=True)
class Sheet:
    """A table ready to be written: columns, rows with their entries, quoted rows and notes."""

    table: Table
    metrics: list[Metric]

    @cached_property
    def baseline(self) -> Row | None:
        """Row that the others are compared with, where this table has it."""
        name = load().task(self.table.task).baseline
        return next((row for row in self.table.rows if row.name == name), None)

    @cached_property
    def lines(self) -> list[tuple[Row, list[Entry]]]:
        """Every row of the table with its cells, one for each metric."""
        bests = {metric.name: best_mean(self.table, metric) for metric in self.metrics}
        return [(row, [self.entry(row, metric, bests[metric.name]) for metric in self.metrics]) for row in self.table.rows]

    def entry(self, row: Row, metric: Metric, best: float | None) -> Entry:
        """Make one cell of the table: mean, spread, and what stands beside them."""
        values = row.values(metric.name)
        mean, sd = mean_and_sd(list(values.values()))
        missing = row.why_missing(metric.name)
        against = self.baseline if self.baseline is not None and self.baseline.name != row.name else None
        if against and metric.is_training and any(training(self.table, each, metric).before for each in (row, against)):
            against = None  # the cell's number leaves out what the row builds upon
        quoted = self.reported.get((row.name, metric.name))
        return Entry(
            mean=mean,
            sd=sd,
            count=len(values),
            text=metric_text(metric, mean, sd) if values else _gap(missing),
            note=f"n = {len(values)}" if values and missing else "",
            best=best is not None and mean == best,
            difference=difference(values, against.values(metric.name), metric.is_deterministic) if against else None,
            reported=metric_text(metric, quoted.value) if quoted else "",
        )

    @cached_property
    def reported(self) -> dict[tuple[str, str], Reported]:
        """What papers print for this benchmark, by row and metric."""
        return {(number.row, number.metric): number for number in load_reported(self.table.task, self.table.dataset)}

    @cached_property
    def quoted(self) -> list[Quoted]:
        """Rows that papers print and this study does not run."""
        own = {row.name for row in self.table.rows}
        rows: dict[tuple[str, str], dict[str, str]] = {}
        known = {metric.name: metric for metric in self.metrics}
        for number in self.reported.values():
            if number.row not in own and number.metric in known:
                texts = rows.setdefault((number.row, number.source), {})
                texts[number.metric] = metric_text(known[number.metric], number.value)
        methods = load().methods.get(self.table.task, {})
        return [Quoted(methods[name].title if name in methods else name, texts, source) for (name, source), texts in rows.items()]

    @cached_property
    def sources(self) -> list[str]:
        """Where the reported numbers of the shown cells come from."""
        shown = {(row.name, metric.name) for row in self.table.rows for metric in self.metrics}
        return list(dict.fromkeys(number.source for key, number in self.reported.items() if key in shown))

    @cached_property
    def notes(self) -> list[str]:
        """What the marks mean, as far as this table has any."""
        entries = [entry for _, line in self.lines for entry in line]
        notes = ["Mean ± standard deviation over seeds."]
        if self.table.substitution:
            notes.append(f"Data: {self.table.substitution}.")
        if any(entry.best for entry in entries):
            notes.append("Bold: the best mean of a column, among rows with all their seeds.")
        if self.baseline is not None and any(entry.significant for entry in entries):
            notes.append(f"†: the paired 95 % interval of the difference from {self.baseline.title} excludes 0.")
        if any(entry.note for entry in entries):
            notes.append("n: number of seeds, where some are missing.")
        if self.sources:
            notes.append(f"“paper”: as printed in {'; '.join(self.sources)}.")
        return notes


def _gap(missing: dict[int, str]) -> str:
    """What stands in a cell without a value: the most common reason, or a dot where the row has no such metric."""
    return Counter(missing.values()).most_common(1)[0][0] if missing else "·"


def best_mean(table: Table, metric: Metric) -> float | None:
    """Best mean of a column among rows with all their seeds; ``None`` where no direction is best or all are equal."""
    if metric.better == "neither":
        return None
    complete = [row for row in table.rows if len(row.values(metric.name)) == len(row.cells)]
    means = [mean_and_sd(list(row.values(metric.name).values()))[0] for row in complete]
    if len(set(means)) < 2:
        return None
    return max(means) if metric.better == "higher" else min(means)


def seeds_text(row: Row) -> str:
    """How many seeds have been evaluated, of how many planned where some are missing."""
    return str(row.evaluated) if row.evaluated == len(row.cells) else f"{row.evaluated} of {len(row.cells)}"


def shown_metrics(table: Table) -> list[Metric]:
    """Return the metrics that the main table shows."""
    return [metric for metric in table.metrics if metric.table]


def write_table(study: Study, task: str, dataset: str) -> None:
    """Write ``tables/<task>/<dataset>.{csv,md,tex}`` and, beside them, a JSON file with what they were made of."""
    table = collect_table(study, task, dataset)
    folder = study.results / "tables" / task
    main = Sheet(table, shown_metrics(table))
    write_text(folder / f"{dataset}.csv", table_csv(table))
    write_text(folder / f"{dataset}.md", table_markdown(main))
    write_text(folder / f"{dataset}.tex", sheet_latex(main))
    write_json(folder / f"{dataset}.json", details(study, table))


def details(study: Study, table: Table) -> dict[str, Any]:
    """Digest of the metrics that a table was made of, and its paired differences from the baseline."""
    sheet = Sheet(table, table.metrics)
    differences = {
        row.name: {
            metric.name: _difference(entry.difference)
            for metric, entry in zip(table.metrics, line, strict=True)
            if entry.difference is not None and entry.difference.count
        }
        for row, line in sheet.lines
    }
    return {
        "task": table.task,
        "dataset": table.dataset,
        "metrics_digest": metrics_digest(study.matching(table.task, table.dataset)),
        "baseline": sheet.baseline.name if sheet.baseline else None,
        **({"data": table.substitution} if table.substitution else {}),
        "differences": {name: difference for name, difference in differences.items() if difference},
    }


def _difference(effect: Interval) -> dict[str, Any]:
    low, high = (effect.low, effect.high) if effect.bounded else (None, None)
    return {"effect": effect.mean, "ci_low": low, "ci_high": high, "n_seeds": effect.count, "interval": effect.method}


def table_csv(table: Table) -> str:
    """Every metric of every row: mean and standard deviation in full precision, what papers print, and what is missing."""
    sheet = Sheet(table, table.metrics)
    printed = [metric.name for metric in table.metrics if any(key[1] == metric.name for key in sheet.reported)]
    columns = [column for metric in table.metrics for column in (metric.name, f"{metric.name}_sd")]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    data = ["data"] if table.substitution else []
    writer.writerow([*COMMON, *columns, *(f"{name}_reported" for name in printed), "source", "missing", *data])
    for row, line in sheet.lines:
        numbers = [_full(value) for entry in line for value in (entry.mean, entry.sd)]
        missing = "; ".join(f"seed {seed}: {reason}" for seed, reason in row.problems.items())
        line_end = [*_printed(sheet, row.name, printed), missing, *([table.substitution] if data else [])]
        writer.writerow([row.name, row.title, row.role, row.evaluated, *numbers, *line_end])
    own = {row.name for row in table.rows}
    for name in dict.fromkeys(row for row, _ in sheet.reported if row not in own):
        writer.writerow([name, name, "quoted", 0, *[""] * len(columns), *_printed(sheet, name, printed), "", *[""] * len(data)])
    return buffer.getvalue()


def _printed(sheet: Sheet, row: str, metrics: Sequence[str]) -> list[str]:
    """Reported numbers of a row, one per metric, and where they stand."""
    published = [sheet.reported.get((row, name)) for name in metrics]
    sources = dict.fromkeys(number.source for number in published if number)
    return [*(repr(number.value) if number else "" for number in published), "; ".join(sources)]


def _full(value: float) -> str:
    return "" if math.isnan(value) else repr(value)


def sheet_cells(sheet: Sheet, bold: str, dagger: str) -> tuple[list[str], list[list[str]]]:
    """Header and body of a written table; ``bold`` and ``dagger`` are the marks' formats."""
    header = ["method", "seeds", *(metric.label for metric in sheet.metrics)]
    body = []
    for row, line in sheet.lines:
        texts = [row.title, seeds_text(row)]
        for entry in line:
            text = (bold.format(entry.text) if entry.best else entry.text) + (dagger if entry.significant else "")
            extras = [entry.note, f"paper {entry.reported}" if entry.reported else ""]
            texts.append(text + "".join(f" ({extra})" for extra in extras if extra))
        body.append(texts)
    for quoted in sheet.quoted:
        numbers = [quoted.texts.get(metric.name, "") for metric in sheet.metrics]
        body.append([f"{quoted.title} (quoted: {quoted.source})", "0", *numbers])
    return header, body


def table_markdown(sheet: Sheet) -> str:
    """The main table for terminals and pull requests."""
    header, body = sheet_cells(sheet, "**{}**", "†")
    text = grid(header, body) + "\n" + " ".join(map(escape, sheet.notes)) + "\n"
    missing = [f"{row.title}, seed {cell.run.seed}: {cell.problem}" for row, cell in sheet.table.problems]
    if missing:
        text += "\nMissing or doubtful:\n\n" + "".join(f"- {escape(note)}\n" for note in missing)
    return text


def sheet_latex(sheet: Sheet) -> str:
    """Render the main table in LaTeX, to put into a paper."""
    header, body = sheet_cells(sheet, "\N{STX}{}\N{ETX}", "†")
    return table_latex(header, body, sheet.notes)
