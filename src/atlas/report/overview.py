"""The first screen: what was run, when, on what, how long, and what came out, by the kind of evidence."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

from atlas.harness.registry import Paper, load
from atlas.harness.study import Study
from atlas.report.collect import Cell, Table
from atlas.report.evidence import ARITHMETIC, KINDS, MODIFIED, REAL, SYNTHETIC
from atlas.report.numbers import duration
from atlas.report.told import against
from atlas.report.verdicts import Judged

SIGNS = {"supported": "✓", "contradicted": "✗", "inconclusive": "?", "not run": "–"}
TOLD = ("supported", "supported, fragile", "contradicted", "contradicted, fragile", "inconclusive")
LEADS = {REAL: "on real data", MODIFIED: "on modified real data", SYNTHETIC: "on synthetic data", ARITHMETIC: "by arithmetic"}
PACKAGES = ("torch", "timm", "numpy")


@dataclass(frozen=True)
class Kind:
    """A kind of evidence with its verdicts and their numbers."""

    name: str
    counts: list[tuple[str, int]]

    @property
    def count(self) -> int:
        """Number of claims of this kind, over all verdicts."""
        return sum(count for _, count in self.counts)


@dataclass(frozen=True)
class Overview:
    """What the study is, and what came out."""

    study: Study
    tables: list[Table]
    judged: list[Judged]

    @cached_property
    def cells(self) -> list[Cell]:
        """Every run that has a place in a table."""
        return [cell for table in self.tables for row in table.rows for cell in row.cells]

    @cached_property
    def done(self) -> list[Cell]:
        """Every run that has been evaluated, stages included."""
        stages = [cell for table in self.tables for row in table.stages for cell in row.cells]
        return [cell for cell in [*self.cells, *stages] if cell.state == "done"]

    @cached_property
    def sources(self) -> list[dict[str, Any]]:
        """Provenance of everything that has been evaluated."""
        return [cell.provenance for cell in self.done]

    @cached_property
    def run(self) -> list[Judged]:
        """Claims that were judged at all."""
        return [judgement for judgement in self.judged if judgement.verdict != "not run"]

    @cached_property
    def kinds(self) -> list[Kind]:
        """Kinds of evidence, with the number of claims per verdict as it is told."""
        tallies = [(name, Counter(judgement.told for judgement in self.run if judgement.evidence == name)) for name in KINDS]
        return [Kind(LEADS[name], [(sign, counts[sign]) for sign in TOLD if counts[sign]]) for name, counts in tallies if counts]

    @cached_property
    def findings(self) -> list[Judged]:
        """What speaks against the methods."""
        return against(self.judged)

    @property
    def headline(self) -> str:
        """What was judged, by the kind of evidence: parameter counts and experiments do not add up to a score."""
        if not self.run:
            return "No claim has been judged yet"
        kinds = [f"{kind.count} {kind.name}" for kind in self.kinds]
        return f"{_plural(len(self.run), 'claim')} judged: {', '.join(kinds)}"

    @cached_property
    def papers(self) -> list[tuple[Paper, list[Judged]]]:
        """Each paper of the study with its judged claims."""
        papers = load().papers
        slugs = dict.fromkeys(judgement.claim.paper for judgement in self.judged)
        return [(papers[slug], [judgement for judgement in self.judged if judgement.claim.paper == slug]) for slug in slugs]

    @property
    def spoken(self) -> list[tuple[Paper, list[Judged]]]:
        """Papers of which some claim was judged."""
        return [(paper, judged) for paper, judged in self.papers if any(judgement.verdict != "not run" for judgement in judged)]

    @property
    def silent(self) -> list[tuple[Paper, list[Judged]]]:
        """Papers of which none was: the page folds them away."""
        return [(paper, judged) for paper, judged in self.papers if all(judgement.verdict == "not run" for judgement in judged)]

    @property
    def runs(self) -> str:
        """How many runs there are, and how many are missing."""
        states = Counter(cell.state for cell in self.cells)
        doubtful = sum(bool(cell.problem) for cell in self.cells if cell.state == "done")
        parts = [f"{states['done']} of {len(self.cells)} evaluated"]
        if states["failed"]:
            parts.append(f"{states['failed']} failed")
        if states["not run"] + states["damaged"]:
            parts.append(f"{states['not run'] + states['damaged']} not run")
        if states["out of date"]:
            parts.append(f"{states['out of date']} out of date")
        if doubtful:
            parts.append(f"{doubtful} doubtful")
        return ", ".join(parts)

    @property
    def facts(self) -> list[tuple[str, str]]:
        """Facts on the study for the head of the report: a term and its description each."""
        facts = [
            ("runs", self.runs),
            ("seeds", self.seeds),
            ("not judged here", _plural(len(self.judged) - len(self.run), "claim") if len(self.run) < len(self.judged) else ""),
            ("benchmarks", f"{len(self.tables)} in {_plural(len(self.study.tasks), 'task')}"),
            ("data", "; ".join(dict.fromkeys(table.substitution for table in self.tables if table.substitution))),
            ("when", self.when),
            ("computing", self.computing),
            ("hardware", _common(self.sources, "hardware")),
            ("kernels", self.kernels),
            ("code", self.commit),
            ("software", self.packages),
        ]
        return [(term, text) for term, text in facts if text]

    @property
    def seeds(self) -> str:
        """The seeds, or how many the benchmarks have where these differ."""
        counts = {len(row.cells) for table in self.tables for row in [*table.rows, *table.stages]}
        if len(counts) > 1:
            return f"{min(counts)} to {max(counts)} per row"
        return _listed(list(map(str, self.study.seeds)))

    @property
    def when(self) -> str:
        """Day and time of the first and last evaluation."""
        times = sorted(filter(None, (_time(source.get("finished")) for source in self.sources)))
        if not times:
            return ""
        first, last = times[0], times[-1]
        zone = last.tzname() or ""
        if first.date() == last.date():
            hours = f"{first:%H:%M}" if f"{first:%H:%M}" == f"{last:%H:%M}" else f"{first:%H:%M} to {last:%H:%M}"
            return f"{last.day} {last:%B %Y}, {hours} {zone}".strip()
        return f"{first.day} {first:%B %Y} to {last.day} {last:%B %Y}"

    @property
    def computing(self) -> str:
        """Time of all runs together; one that several build upon counts once."""
        trained = {cell: seconds for done in self.done for cell, seconds in done.needed_seconds.items()}
        trained |= {done.run.cell: done.seconds("train_seconds") or 0.0 for done in self.done}
        total = sum(trained.values()) + sum(done.seconds("evaluate_seconds") or 0.0 for done in self.done)
        return f"{duration(total)} of training and evaluation" if self.done else ""

    @property
    def kernels(self) -> str:
        """The processors' kernels, and how many rows have seeds of several: such a row is no one set of numbers."""
        rows = [row for table in self.tables for row in [*table.rows, *table.stages]]
        mixed = sum(len({str(cell.provenance.get("kernels")) for cell in row.cells if cell.state == "done"}) > 1 for row in rows)
        text = _common(self.sources, "kernels")
        return text + (f"; seeds of several in {_plural(mixed, 'row')}" if text and mixed else "")

    @property
    def commit(self) -> str:
        """Commits of the code that computed the runs, most common first."""
        commits = Counter(str(source.get("git_commit"))[:10] for source in self.sources)
        changed = sum(bool(source.get("git_dirty")) for source in self.sources)
        text = _listed([commit for commit, _ in commits.most_common()], most=4)
        return text + (f"; {_plural(changed, 'run')} with local changes" if changed else "")

    @property
    def packages(self) -> str:
        """Versions that the numbers depend on most."""
        recorded = [source.get("packages") for source in self.sources]
        versions = [held for held in recorded if isinstance(held, dict)]
        python = _common(self.sources, "python")
        names = [f"{name} {_listed(sorted({str(held[name]) for held in versions if name in held}))}" for name in PACKAGES]
        return ", ".join([*([f"Python {python}"] if python else []), *(name for name in names if not name.endswith(" "))])


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")


def _listed(names: list[str], most: int = 6) -> str:
    """Names separated by commas, the middle left out where there are many."""
    return ", ".join(names) if len(names) <= most else f"{', '.join(names[:2])} … {names[-1]} ({len(names)})"


def _common(sources: list[dict[str, Any]], key: str) -> str:
    """The values of a key, most common first."""
    counts = Counter(str(source[key]) for source in sources if source.get(key))
    return _listed([name for name, _ in counts.most_common()], most=3)


def _time(text: Any) -> datetime | None:
    try:
        return datetime.fromisoformat(str(text))
    except ValueError:
        return None
