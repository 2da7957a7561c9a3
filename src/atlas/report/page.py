"""The page that a reader opens first: ``report.html``, self-contained, and the same content as ``report.md``."""

from __future__ import annotations

import base64
import hashlib
import math
from pathlib import Path
from typing import Any

from atlas.harness.files import write_text
from atlas.harness.registry import Task, load
from atlas.harness.stale import table_matches
from atlas.harness.study import Study
from atlas.report.chapters import Chapter
from atlas.report.collect import collect
from atlas.report.inline import data_address
from atlas.report.intervals import interval_picture
from atlas.report.markdown import escape, fenced, grid
from atlas.report.overview import SIGNS, Overview
from atlas.report.series import write_series
from atlas.report.tables import Sheet, seeds_text, shown_metrics, table_markdown
from atlas.report.told import (
    claims_markdown,
    found_line,
    refresh_claims,
    rule,
    seed_numbers,
    spread_of_splits,
    unsettled,
    values_csv,
)
from atlas.report.verdicts import VERDICTS, Judged, judge_all

# Nothing but the page itself may load or run: not even what an escaped name would smuggle in.
POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
    "base-uri 'none'; form-action 'none'"
)


def write_report(study: Study) -> Path:
    """Write ``report.html``, ``report.md`` and the series for DVC from whatever has been evaluated.

    Files of verdicts that say otherwise than the page are written with it: a page that is up to date says that they are.

    Returns
    -------
    Path
        The page.
    """
    tables = collect(study)
    judged = judge_all(study, tables)
    refresh_claims(study, judged)
    overview = Overview(study, tables, judged)
    chapters = [
        (load().task(task), [Chapter(table) for table in tables if table.task == task and table.rows]) for task in study.tasks
    ]
    path = study.results / "report.html"
    write_text(path, page(study, overview, chapters))
    write_text(study.results / "report.md", markdown(study, overview, chapters))
    write_series(study, tables)
    return path


def page(study: Study, overview: Overview, chapters: list[tuple[Task, list[Chapter]]]) -> str:
    """Render the overview and all chapters as one HTML page that needs no other file."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("atlas.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )

    def asset(name: str) -> str:
        return (Path(__file__).parent / "templates" / name).read_text()

    script = asset("report.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    helpers: dict[str, Any] = {"signs": SIGNS, "seeds_text": seeds_text, "number": _number, "verdict_rank": _rank}
    helpers |= {"interval_picture": interval_picture, "rule": rule(study), "policy": POLICY.format(digest=digest)}
    helpers |= {"found_line": found_line, "seed_numbers": seed_numbers, "unsettled": unsettled, "sign_class": _sign_class}
    helpers |= {"covered": spread_of_splits(overview.judged), "values": data_address("text/csv", values_csv(overview.judged))}
    environment.globals.update(helpers)
    return environment.get_template("report.html").render(
        study=study,
        overview=overview,
        chapters=chapters,
        outdated=[chapter.anchor for _, part in chapters for chapter in part if _outdated(chapter)],
        style=Markup(asset("style.css")),
        script=Markup(script),
    )


def _number(value: float) -> str:
    """A value to sort by, in full precision; empty where there is none."""
    return "" if math.isnan(value) else repr(value)


def _sign_class(sign: str) -> str:
    """Classes of the style sheet for a verdict as it is told."""
    return sign.replace(", ", " ").replace("not run", "not-run")


def _rank(judgement: Judged) -> int:
    return VERDICTS.index(judgement.verdict)


def _outdated(chapter: Chapter) -> bool:
    """Whether the table's files were made of other metrics than are there now."""
    return table_matches(chapter.table.study, chapter.table.task, chapter.table.dataset) is False


def markdown(study: Study, overview: Overview, chapters: list[tuple[Task, list[Chapter]]]) -> str:
    """The report's content for terminals and pull requests."""
    parts = [f"# Atlas, {study.tier} study: {overview.headline}\n\n{escape(study.description)}\n\n"]
    for kind in overview.kinds:
        counts = [f"{SIGNS[sign.partition(',')[0]]} {count} {sign}" for sign, count in kind.counts]
        parts.append(f"- {kind.count} {kind.name}: {' · '.join(counts)}\n")
    parts.append("\n" * bool(overview.kinds))
    parts += [f"- {term}: {escape(text)}\n" for term, text in overview.facts]
    if study.limits:
        parts.append("\nWhat this study cannot show:\n\n")
        parts += [f"- {escape(limit)}\n" for limit in study.limits]
    parts.append("\n## Claims\n\n" + claims_markdown(study, overview.judged))
    for task, part in chapters:
        parts.append(f"\n## {escape(task.title)}\n\n{escape(task.question)}\n")
        parts += [_chapter_markdown(chapter) for chapter in part]
    parts.append("\n## Papers\n\n")
    papers = sorted(load().papers.values(), key=lambda paper: paper.slug)
    parts += [f"- {paper.slug}: {escape(paper.citation)}. [{escape(paper.title)}]({paper.url})\n" for paper in papers]
    return "".join(parts)


def _chapter_markdown(chapter: Chapter) -> str:
    table = chapter.table
    parts = [f"\n### {escape(table.dataset)}\n\n{table_markdown(Sheet(table, shown_metrics(table)))}"]
    folder = f"figures/{table.task}/{table.dataset}"
    parts += [f"\n![{escape(figure.alt)}]({folder}/{figure.name}.svg)\n*{escape(figure.caption)}*\n" for figure in chapter.drawn]
    costs = [[row.title, *(cost.text for cost in line)] for row, line in chapter.costs]
    parts.append(f"\nCosts, means over seeds:\n\n{grid(['method', *chapter.cost_header], costs)}")
    for row, cell in table.problems:
        if cell.tail:
            parts.append(f"\nLog of {escape(row.title)}, seed {cell.run.seed}:\n\n{fenced(cell.tail)}")
    return "".join(parts)
