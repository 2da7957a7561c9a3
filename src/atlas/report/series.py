"""The numbers that ``dvc metrics`` and ``dvc plots`` show: one summary, one curve file and one bar file per table."""

from __future__ import annotations

import csv
import io
import math
from typing import Any

from atlas.harness.files import write_json, write_text
from atlas.harness.stale import summary_digest
from atlas.harness.study import Study
from atlas.report.collect import Table, collect
from atlas.report.statistics import mean_and_sd


def write_series(study: Study, tables: list[Table] | None = None) -> None:
    """Write ``metrics.json`` (means by task, dataset and method) and ``plots/``."""
    summary: dict[str, Any] = {"digest": summary_digest(study)}
    headlines: list[list[str]] = []
    for table in collect(study) if tables is None else tables:
        rows = summary.setdefault(table.task, {}).setdefault(table.dataset, {})
        for row in table.rows:
            means = {metric.name: mean_and_sd(list(row.values(metric.name).values()))[0] for metric in table.metrics}
            rows[row.name] = {name: value for name, value in means.items() if not math.isnan(value)}
            headline = table.metrics[0].name if table.metrics else ""
            for seed, value in row.values(headline).items():
                headlines.append([f"{table.task}/{table.dataset}", row.name, str(seed), headline, repr(value)])
        write_text(study.results / "plots" / "curves" / f"{table.task}--{table.dataset}.csv", curves(table))
    write_json(study.results / "metrics.json", summary)
    header = ["benchmark", "method", "seed", "metric", "value"]
    write_text(study.results / "plots" / "headlines.csv", _csv(header, headlines))


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
