"""Verdicts on claims: paired over seeds, with a confidence interval, the same rule for every claim.

A comparison asks an effect to be in a region: at least a margin, at most a margin, or within a tolerance of it. It is
*supported* if its whole 95 % interval lies inside, *contradicted* if the whole interval lies outside, else *inconclusive*. So a
true effect at the edge of the region is called supported in 2.5 % of studies and contradicted in 2.5 %. One seed
alone is inconclusive.

A claim with several comparisons is supported if all are, which is no easier with more of them. It is contradicted if one
is; because more comparisons are more chances to err, each is then held to an interval of 1 − 0.05/k, k their number.
"""

from __future__ import annotations

import csv
import io
import math
from dataclasses import dataclass
from functools import cached_property

from atlas.harness.claims import Claim, Comparison, load_claims
from atlas.harness.files import write_text
from atlas.harness.registry import Metric, load
from atlas.harness.study import Study
from atlas.report.collect import Row, Table, collect
from atlas.report.markdown import escape, grid
from atlas.report.numbers import effect_text, effect_unit, margin_text
from atlas.report.statistics import CONFIDENCE, Interval, effects, interval

COLUMNS = (
    "id",
    "paper",
    "statement",
    "metric",
    "method",
    "baseline",
    "n_seeds",
    "effect",
    "ci_low",
    "ci_high",
    "reported",
    "verdict",
    "source",
)
VERDICTS = ("supported", "contradicted", "inconclusive", "not run")
DECISIVE = ("contradicted", "not run", "inconclusive", "supported")
SIGNS = {"higher": "≥", "lower": "≤", "equal": "="}


@dataclass(frozen=True)
class Part:
    """One comparison of a claim with what was found.

    Attributes
    ----------
    table : Table, optional
        Where the rows stand; ``None`` if the study does not have them.
    strict : Interval
        The wider interval that a contradiction needs, where the claim has several comparisons.
    planned : int
        Number of seeds that the study plans.
    """

    comparison: Comparison
    task: str
    table: Table | None
    found: Interval
    strict: Interval
    planned: int

    @cached_property
    def verdict(self) -> str:
        """Verdict on this comparison."""
        first = verdict(self.comparison, self.found)
        if first == "contradicted" and verdict(self.comparison, self.strict) != "contradicted":
            return "inconclusive"
        return first

    @property
    def metric(self) -> Metric | None:
        """The metric that is compared, as its row or else its task declares it."""
        row = self._row(self.comparison.method)
        declared = row.metrics if row else load().task(self.task).metrics
        return next((metric for metric in declared if metric.name == self.comparison.metric), None)

    @property
    def asked(self) -> str:
        """What the comparison asks for, in the words of the tables."""
        asks = self.comparison
        label = self.metric.label if self.metric else asks.metric
        unit = effect_unit(self.metric, asks.compare)
        margin = margin_text(self.metric, asks.compare, asks.margin)
        if asks.direction == "equal" and asks.tolerance:
            margin += f" ± {margin_text(self.metric, asks.compare, asks.tolerance)}"
        return f"{label}: {self.sides} {SIGNS[asks.direction]} {margin}{unit}"

    @property
    def sides(self) -> str:
        """The rows that are compared, by their titles."""
        asks = self.comparison
        if asks.compare == "value" or asks.baseline is None:
            return self._title(asks.method)
        return f"{self._title(asks.method)} {'÷' if asks.compare == 'ratio' else '−'} {self._title(asks.baseline)}"

    @property
    def effect(self) -> str:
        """The effect with its interval; empty where there is none."""
        found, compare = self.found, self.comparison.compare
        if found.count == 0:
            return ""
        unit = effect_unit(self.metric, compare)
        if not found.bounded:
            return effect_text(self.metric, compare, found.mean) + unit
        mean, low, high = (effect_text(self.metric, compare, value) for value in (found.mean, found.low, found.high))
        return f"{mean}{unit} (exact)" if found.low == found.high else f"{mean} [{low}, {high}]{unit}"

    @property
    def basis(self) -> str:
        """How many seeds, and how the interval was found."""
        if self.found.count == 0:
            return self.why_not_run
        seeds = str(self.found.count) if self.found.count == self.planned else f"{self.found.count} of {self.planned}"
        return f"{seeds} seed{'s' if self.planned != 1 else ''}, {self.found.method}"

    @property
    def why_not_run(self) -> str:
        """Why no seed could be judged."""
        if self.table is None:
            return ""
        for name in filter(None, (self.comparison.method, self.comparison.baseline)):
            row = self._row(name)
            if row is None:
                return f"{name} is not a row of this study"
            missing = row.why_missing(self.comparison.metric)
            if len(missing) == len(row.cells):
                return f"{row.title}: {next(iter(row.problems.values()), next(iter(missing.values())))}"
        return "no seed has both rows"

    def _row(self, name: str) -> Row | None:
        return self.table.row(name) if self.table else None

    def _title(self, name: str) -> str:
        row = self._row(name)
        methods = load().methods.get(self.task, {})
        return row.title if row else methods[name].title if name in methods else name


@dataclass(frozen=True)
class Judged:
    """A claim with its verdict; the numbers of its row are those of the comparison that decides.

    Attributes
    ----------
    reason : str
        Why it was not run; empty if it was.
    """

    claim: Claim
    tier: str
    dataset: str
    parts: tuple[Part, ...]
    reason: str

    @cached_property
    def decisive(self) -> Part:
        """The comparison that decides: a contradiction, else what is not run or open, else the first."""
        return min(self.parts, key=lambda part: DECISIVE.index(part.verdict))

    @property
    def verdict(self) -> str:
        """Verdict on the claim."""
        return self.decisive.verdict

    def row(self) -> dict[str, str]:
        """The claim as a row of ``claims.csv``."""
        found, asks = self.decisive.found, self.decisive.comparison
        return {
            "id": self.claim.id,
            "paper": self.claim.paper,
            "statement": self.claim.statement,
            "metric": asks.metric,
            "method": asks.method,
            "baseline": asks.baseline or "",
            "n_seeds": str(found.count),
            "effect": _number(found.mean),
            "ci_low": _number(found.low),
            "ci_high": _number(found.high),
            "reported": "" if self.claim.reported is None else str(self.claim.reported),
            "verdict": self.verdict,
            "source": self.claim.source,
        }


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.6g}"


def region(comparison: Comparison) -> tuple[float, float]:
    """Smallest and largest effect that satisfy a comparison."""
    if comparison.direction == "higher":
        return comparison.margin, math.inf
    if comparison.direction == "lower":
        return -math.inf, comparison.margin
    return comparison.margin - comparison.tolerance, comparison.margin + comparison.tolerance


def verdict(comparison: Comparison, found: Interval) -> str:
    """Judge one comparison by its interval."""
    if found.count == 0:
        return "not run"
    if not found.bounded:
        return "inconclusive"
    low, high = region(comparison)
    slack = 1e-12 * max(1e-6, abs(comparison.margin), abs(found.mean))
    if low - slack <= found.low and found.high <= high + slack:
        return "supported"
    if found.high < low - slack or found.low > high + slack:
        return "contradicted"
    return "inconclusive"


def compare(comparison: Comparison, task: str, table: Table | None, count: int) -> Part:
    """Find the effect of one of ``count`` comparisons of a claim about a task."""
    method = table.row(comparison.method) if table else None
    baseline = table.row(comparison.baseline) if table and comparison.baseline else None
    ours = method.values(comparison.metric) if method else {}
    theirs = baseline.values(comparison.metric) if baseline else {}
    sample = effects(comparison.compare, ours, theirs if comparison.baseline else None)
    strict = interval(sample, 1 - (1 - CONFIDENCE) / count)
    return Part(comparison, task, table, interval(sample), strict, len(method.cells) if method else 0)


def judge(claim: Claim, study: Study, tables: dict[tuple[str, str], Table]) -> Judged:
    """Judge one claim on a study's results."""
    dataset = claim.dataset(study.tier)
    table = tables.get((claim.task, dataset)) if dataset else None
    comparisons = claim.comparisons(study.tier)
    parts = tuple(compare(comparison, claim.task, table, len(comparisons)) for comparison in comparisons)
    reason = ""
    if dataset is None:
        reason = f"not a claim for the {study.tier} tier"
    elif table is None:
        reason = f"{claim.task}/{dataset} is not in this study"
    elif any(part.verdict == "not run" for part in parts):
        reason = next(part.why_not_run for part in parts if part.verdict == "not run")
    return Judged(claim, study.tier, dataset or "", parts, reason)


def judge_all(study: Study, tables: list[Table] | None = None) -> list[Judged]:
    """Judge every claim of every paper."""
    found = {(table.task, table.dataset): table for table in (collect(study) if tables is None else tables)}
    return [judge(claim, study, found) for claim in load_claims()]


def write_claims(study: Study) -> list[Judged]:
    """Write ``claims.csv`` and ``claims.md``."""
    judged = judge_all(study)
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(one.row() for one in judged)
    write_text(study.results / "claims.csv", buffer.getvalue())
    write_text(study.results / "claims.md", f"# Claims, {study.tier} tier\n\n{claims_markdown(study, judged)}")
    return judged


def rule(study: Study) -> str:
    """How claims are judged, for the reader."""
    return (
        f"Each claim is judged on the {study.tier} tier’s runs, paired by seed: supported if its whole 95 % confidence "
        "interval satisfies what is asked, contradicted if none of it does, else inconclusive. The interval is Student’s t for "
        "up to 20 seeds, the studentised bootstrap beyond; numbers that are the same on every seed are exact. Claims are judged "
        "one by one: of 40 that are exactly on the edge, about two get a verdict by chance."
    )


def claims_markdown(study: Study, judged: list[Judged]) -> str:
    """The verdicts as a Markdown table per paper."""
    header = ["claim", "statement", "asked", "effect [95 % interval]", "verdict", "paper reports"]
    text = escape(rule(study)) + "\n"
    for slug in dict.fromkeys(one.claim.paper for one in judged):
        rows = [_markdown_row(one) for one in judged if one.claim.paper == slug]
        text += f"\n**{escape(load().papers[slug].title)}** ({slug})\n\n{grid(header, rows)}"
    return text


def _markdown_row(one: Judged) -> list[str]:
    part = one.decisive
    where = f" on {one.dataset}" if one.dataset else ""
    return [
        one.claim.id,
        one.claim.statement,
        part.asked + where + (f" (decides, of {len(one.parts)})" if len(one.parts) > 1 else ""),
        f"{part.effect} ({part.basis})" if part.found.count else "",
        one.verdict + (f": {one.reason}" if one.verdict == "not run" else ""),
        "" if one.claim.reported is None else str(one.claim.reported),
    ]


def print_claims(study: Study) -> None:
    """Print the verdicts: a table on a terminal, tab-separated lines in a pipe."""
    import sys

    judged = judge_all(study)
    if not sys.stdout.isatty():
        for one in judged:
            print("\t".join((one.claim.id, one.verdict, one.decisive.effect, one.decisive.asked)))
        return
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    styles = {"supported": "green", "contradicted": "red", "inconclusive": "yellow", "not run": "dim"}
    table = RichTable("claim", "statement", "effect [95 % interval]", "verdict", box=None, header_style="bold")
    for one in judged:
        texts = (one.claim.id, one.claim.statement, one.decisive.effect or one.reason)
        table.add_row(*map(Text, texts), Text(one.verdict, styles[one.verdict]))
    Console().print(table)
