"""Comparison tables as CSV, Markdown and LaTeX: mean ± standard deviation over seeds, the best of a column marked."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

from atlas.harness.claims import load_reported
from atlas.harness.files import write_json, write_text
from atlas.harness.registry import Metric
from atlas.harness.stale import metrics_digest
from atlas.harness.study import Study
from atlas.report.collect import Row, Table, collect_table
from atlas.report.statistics import differs, mean_and_sd


@dataclass(frozen=True)
class Entry:
    """One cell of a table.

    Attributes
    ----------
    text : str
        Mean ± standard deviation, formatted; a dash where there is no value.
    best : bool
        Best mean of its column.
    significant : bool
        The paired difference from the baseline row excludes 0.
    """

    mean: float
    sd: float
    count: int
    text: str
    best: bool = False
    significant: bool = False


def si(value: float) -> str:
    """A count with three digits and a unit prefix: 3.79 M.

    Examples
    --------
    >>> si(3790976.0)
    '3.79 M'
    """
    for factor, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{value / factor:.3g} {prefix}"
    return f"{value:.3g}"


def formatted(metric: Metric, mean: float, sd: float) -> str:
    """Mean ± standard deviation in the metric's format."""
    if math.isnan(mean):
        return "–"
    if metric.format == "si":
        return si(mean) if math.isnan(sd) or sd == 0 else f"{si(mean)} ± {si(sd)}"
    text = format(mean, metric.format)
    if math.isnan(sd) or sd == 0:
        return text
    if metric.format.endswith("%"):
        return f"{text[:-1]} ± {format(sd, metric.format)[:-1]} %"
    return f"{text} ± {format(sd, metric.format)}"


def best_mean(table: Table, metric: Metric) -> float | None:
    """Best mean of a column among rows with all their seeds; ``None`` where no direction is best or all are equal."""
    if metric.better == "neither":
        return None
    means = [
        mean_and_sd(list(row.values(metric.name).values()))[0]
        for row in table.rows
        if len(row.values(metric.name)) == len(row.cells)
    ]
    if len(set(means)) < 2:
        return None
    return max(means) if metric.better == "higher" else min(means)


def entry(table: Table, row: Row, metric: Metric, best: float | None, baseline: Row | None) -> Entry:
    """One cell of a table."""
    values = row.values(metric.name)
    mean, sd = mean_and_sd(list(values.values()))
    other = baseline is not None and baseline.name != row.name
    return Entry(
        mean=mean,
        sd=sd,
        count=len(values),
        text=formatted(metric, mean, sd),
        best=best is not None and mean == best,
        significant=other and baseline is not None and differs(values, baseline.values(metric.name)),
    )


def entries(table: Table, metrics: Sequence[Metric]) -> list[list[Entry]]:
    """Every cell of a table, row by row."""
    baseline = table.row(baseline_name(table))
    bests = {metric.name: best_mean(table, metric) for metric in metrics}
    return [[entry(table, row, metric, bests[metric.name], baseline) for metric in metrics] for row in table.rows]


def baseline_name(table: Table) -> str:
    """Row that the others are compared with."""
    from atlas.harness.registry import load

    return load().task(table.task).baseline


def seeds_text(row: Row) -> str:
    """How many seeds have a value, of how many planned where some are missing."""
    done = sum(1 for cell in row.cells if cell.content)
    return str(done) if done == len(row.cells) else f"{done} of {len(row.cells)}"


def reported_numbers(table: Table) -> dict[str, str]:
    """Row to what papers print for its headline metric, with the source."""
    headline = table.metrics[0] if table.metrics else None
    return {
        number.row: f"{format(number.value, headline.format)} ({number.source})"
        for number in load_reported(table.task, table.dataset)
        if headline is not None and number.metric == headline.name
    }


def notes(table: Table) -> list[str]:
    """Why cells are missing, row by row and seed by seed."""
    return [f"{row.title}, seed {seed}: {reason}" for row in table.rows for seed, reason in row.problems.items()]


def write_table(study: Study, task: str, dataset: str) -> None:
    """Write ``tables/<task>/<dataset>.{csv,md,tex}`` and, beside them, what they were made of."""
    table = collect_table(study, task, dataset)
    folder = study.results / "tables" / task
    write_text(folder / f"{dataset}.csv", table_csv(table))
    write_text(folder / f"{dataset}.md", table_markdown(table))
    write_text(folder / f"{dataset}.tex", table_latex(table))
    digest = metrics_digest(study.matching(task, dataset))
    write_json(folder / f"{dataset}.json", {"task": task, "dataset": dataset, "metrics_digest": digest})


def table_csv(table: Table) -> str:
    """Every metric of every row: mean and standard deviation in full precision, and what is missing."""
    buffer = io.StringIO()
    names = [metric.name for metric in table.metrics]
    columns = ["method", "title", "role", "n_seeds"]
    columns += [column for name in names for column in (name, f"{name}_sd")] + ["reported", "missing"]
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    reported = reported_numbers(table)
    for row, cells in zip(table.rows, entries(table, table.metrics), strict=True):
        numbers = [_full(value) for cell in cells for value in (cell.mean, cell.sd)]
        missing = "; ".join(f"seed {seed}: {reason}" for seed, reason in row.problems.items())
        done = str(sum(1 for cell in row.cells if cell.content))
        writer.writerow([row.name, row.title, row.role, done, *numbers, reported.get(row.name, ""), missing])
    return buffer.getvalue()


def _full(value: float) -> str:
    return "" if math.isnan(value) else repr(value)


def shown_metrics(table: Table) -> list[Metric]:
    """Metrics of the main table."""
    return [metric for metric in table.metrics if metric.table]


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with its bars escaped."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def table_markdown(table: Table) -> str:
    """The main table for terminals and pull requests; the best of a column is bold, † differs from the baseline."""
    metrics = shown_metrics(table)
    reported = reported_numbers(table)
    header = ["method", "seeds", *(metric.label for metric in metrics), *(["paper"] if reported else [])]
    rows = []
    for row, cells in zip(table.rows, entries(table, metrics), strict=True):
        texts = [(f"**{cell.text}**" if cell.best else cell.text) + ("†" if cell.significant else "") for cell in cells]
        rows.append([row.title, seeds_text(row), *texts, *([reported.get(row.name, "")] if reported else [])])
    text = markdown_table(header, rows)
    differs_from = f"† differs from {baseline_name(table)} (paired 95 % interval)"
    text += f"\nMean ± standard deviation over seeds; **best** of a column; {differs_from}.\n"
    missing = notes(table)
    if missing:
        text += "\nMissing:\n\n" + "".join(f"- {note}\n" for note in missing)
    return text


LATEX = {"&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}"}
LATEX |= {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}"}
LATEX |= {"±": r"$\pm$", "†": r"$^\dagger$", "–": "--", "÷": r"$\div$", "×": r"$\times$", "−": "$-$", "λ": r"$\lambda$"}


def latex(text: str) -> str:
    """Escape text for LaTeX."""
    return "".join(LATEX.get(character, character) for character in text)


def table_latex(table: Table) -> str:
    """The main table for a paper, with booktabs."""
    metrics = shown_metrics(table)
    lines = [
        "% needs \\usepackage{booktabs}",
        f"\\begin{{tabular}}{{l{'r' * (len(metrics) + 1)}}}",
        "\\toprule",
        " & ".join(latex(label) for label in ("method", "seeds", *(metric.label for metric in metrics))) + r" \\",
        "\\midrule",
    ]
    for row, cells in zip(table.rows, entries(table, metrics), strict=True):
        texts = [latex(row.title), latex(seeds_text(row))]
        for cell in cells:
            text = latex(cell.text + ("†" if cell.significant else ""))
            texts.append(f"\\textbf{{{text}}}" if cell.best else text)
        lines.append(" & ".join(texts) + r" \\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", ""])
