"""The numbers that ``dvc metrics`` and ``dvc plots`` show: one small summary, one curve file and one bar file per table."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path

from atlas.harness.files import write_json, write_text
from atlas.harness.registry import load
from atlas.harness.stale import SUMMARY, summary_digest
from atlas.harness.study import Study
from atlas.report.collect import Row, Table, collect
from atlas.report.statistics import mean_and_sd


def write_series(study: Study, tables: list[Table] | None = None) -> None:
    """Write ``metrics/<task>/<dataset>.json``, ``plots/`` and, last, ``summary.json``, which says what the page was made of."""
    headlines: list[list[str]] = []
    written: set[Path] = set()
    for table in collect(study) if tables is None else tables:
        path = study.results / "metrics" / table.task / f"{table.dataset}.json"
        write_json(path, overview(table))
        written.add(path)
        for row in table.rows:
            headline = table.metrics[0].name if table.metrics else ""
            for seed, value in row.values(headline).items():
                headlines.append([f"{table.task}/{table.dataset}", row.name, str(seed), headline, repr(value)])
        write_text(study.results / "plots" / "curves" / f"{table.task}--{table.dataset}.csv", curves(table))
    for path in set((study.results / "metrics").rglob("*.json")) - written:
        path.unlink()  # of a benchmark that the study no longer has
    header = ["benchmark", "method", "seed", "metric", "value"]
    write_text(study.results / "plots" / "headlines.csv", _csv(header, headlines))
    write_json(study.results / SUMMARY, {"digest": summary_digest(study)})


def overview(table: Table) -> dict[str, float]:
    """A benchmark in three numbers that fit a line: headline metric of the baseline and of the best row, and runs done."""
    numbers: dict[str, float] = {}
    if table.metrics:
        headline = table.metrics[0]
        means = {row.name: mean for row in table.rows if not math.isnan(mean := _mean(row, headline.name))}
        if (name := load().task(table.task).baseline) in means:
            numbers["baseline"] = means[name]
        if means and headline.better != "neither":
            numbers["best"] = (max if headline.better == "higher" else min)(means.values())
    return {**numbers, "runs": sum(cell.state == "done" for row in table.rows for cell in row.cells)}


def _mean(row: Row, metric: str) -> float:
    return mean_and_sd(list(row.values(metric).values()))[0]


def curves(table: Table) -> str:
    """Mean training curve of every row: step, method, value of the first logged column."""
    lines: list[list[str]] = []
    for row in table.rows:
        points: dict[int, list[float]] = {}
        for cell in row.cells:
            if cell.run.history.is_file():
                for record in csv.DictReader(cell.run.history.open()):
                    name = next((key for key in record if key != "step"), None)
                    if name and record[name]:
                        points.setdefault(int(record["step"]), []).append(float(record[name]))
        lines += [[str(step), row.name, repr(mean_and_sd(values)[0])] for step, values in sorted(points.items())]
    return _csv(["step", "method", "value"], lines)


def _csv(header: list[str], rows: list[list[str]]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([header, *rows])
    return buffer.getvalue()
