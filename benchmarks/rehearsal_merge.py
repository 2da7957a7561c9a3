"""Rows that were rehearsed by themselves, into the committed table of the paper study's rehearsal.

    atlas rehearse --tier paper CELL…
    python -m benchmarks.rehearsal_merge

A rehearsal of some rows prints them and notes them in ``logs/paper/rehearsal.jsonl``; one of the whole study writes
``results/paper/rehearsal.{csv,md}``, which takes hours. This puts the notes that fit the study as it is now in the place of the
older lines, or where the study has the row, and counts rows and hours anew.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping
from pathlib import Path

from atlas.cli.rehearse import markdown, table
from atlas.harness.rehearsal import GPUS, Notes, Rehearsal
from atlas.study import Study

ROOT = Path(__file__).resolve().parent.parent
CARD = GPUS["A100-80GB"]
COUNTS = "## Published counts"


def name_of(line: str) -> str:
    """The row of the study that a line of a table is about."""
    return re.split(r"[,|]", line.strip("| "), maxsplit=1)[0].strip()


def joined(lines: list[str], new: dict[str, list[str]], order: list[str]) -> list[str]:
    """Lines of a table, those of the new rows in the place of the older ones, in the order of the study."""
    found: dict[str, list[str]] = {}
    for line in lines:
        found.setdefault(name_of(line), []).append(line)
    found |= new
    return [line for name in order for line in found.get(name, [])]


def by_row(lines: list[str]) -> dict[str, list[str]]:
    """Lines of a table by their rows."""
    return {name: [line for line in lines if name_of(line) == name] for name in dict.fromkeys(map(name_of, lines))}


def rows_of(text: str) -> list[str]:
    """Lines of a Markdown table that are about a row of the study."""
    return [line for line in text.splitlines() if line.startswith("| ") and "/" in name_of(line)]


def counted(line: str, runs: Mapping[str, int]) -> str:
    """A row's line, of CSV or Markdown, with as many runs as the study has of it; a rehearsal by one run's name has noted one."""
    name = name_of(line)
    return re.sub(rf"^((?:\| )?{re.escape(name)}(?:,| \| ))\d+(?=,| \|)", rf"\g<1>{runs[name]}", line, count=1)


def merged(study: Study, known: list[Rehearsal], table_before: str, page_before: str) -> tuple[str, str]:
    """The table as CSV and as Markdown with what is known now."""
    runs = {each[0].row: len(each) for each in study.by_row.values()}
    order = list(runs)
    head, *lines = table_before.splitlines()
    whole = [head, *(counted(line, runs) for line in joined(lines, by_row(table(known, CARD).splitlines()[1:]), order))]
    text = "\n".join(whole) + "\n"

    results, _, counts = page_before.partition(COUNTS)
    new_results, _, new_counts = markdown(study, known, CARD).partition(COUNTS)
    new = by_row(rows_of(new_results))
    own_counts = {name: [] for name in new} | by_row(rows_of(new_counts))
    start = [line for line in results.rstrip("\n").splitlines() if line not in rows_of(results)]
    below = [line for line in counts.rstrip("\n").splitlines() if line not in rows_of(counts)]
    rows = list(csv.DictReader(io.StringIO(text)))
    hours = sum(float(row["gpu_hours"]) * int(row["seeds"]) for row in rows if row["gpu_hours"])
    stepped = sum(row["status"] == "stepped" for row in rows)
    start = [re.sub(r"^\d+ of \d+ rows", f"{stepped} of {len(order)} rows", line) for line in start]
    start = [re.sub(r"about [\d,]+ GPU hours", f"about {hours:,.0f} GPU hours", line) for line in start]
    page = [*start, *(counted(line, runs) for line in joined(rows_of(results), new, order)), "", COUNTS + below[0], *below[1:]]
    return text, "\n".join([*page, *joined(rows_of(counts), own_counts, order)]) + "\n"


def main() -> None:
    """Merge the notes into the committed table."""
    study = Study.read("paper", ROOT)
    known = list(Notes(ROOT / "logs/paper/rehearsal.jsonl").of(list(study.by_row.values())).values())
    files = [ROOT / "results/paper" / f"rehearsal.{ending}" for ending in ("csv", "md")]
    for path, text in zip(files, merged(study, known, *(path.read_text() for path in files)), strict=True):
        path.write_text(text)
    print(f"{len(known)} rows merged: {', '.join(result.run.row for result in known)}")


if __name__ == "__main__":
    main()
