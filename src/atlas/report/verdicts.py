"""Verdicts on claims: paired over seeds, with a confidence interval, the same rule for every claim.

A comparison asks an effect to be in a region (at least, at most, or within a tolerance of the margin). It is *supported* if the
whole interval lies inside, *contradicted* if the whole interval lies outside, else *inconclusive*; one seed alone is
inconclusive. A claim with several comparisons is supported if all are, contradicted if one is.
"""

from __future__ import annotations

import csv
import io
import math
from dataclasses import dataclass

from atlas.harness.claims import Claim, Comparison, load_claims
from atlas.harness.files import write_text
from atlas.harness.study import Study
from atlas.report.collect import Table, collect_table
from atlas.report.statistics import Interval, interval, paired

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


@dataclass(frozen=True)
class Judged:
    """A claim with its verdict; the numbers are those of its decisive comparison."""

    claim: Claim
    verdict: str
    comparison: Comparison
    found: Interval | None
    reason: str
    dataset: str

    def row(self) -> dict[str, str]:
        """The claim as a row of ``claims.csv``."""
        found = self.found
        return {
            "id": self.claim.id,
            "paper": self.claim.paper,
            "statement": self.claim.statement,
            "metric": self.comparison.metric,
            "method": self.comparison.method,
            "baseline": self.comparison.baseline or "",
            "n_seeds": str(found.count) if found else "0",
            "effect": _number(found.mean) if found else "",
            "ci_low": _number(found.low) if found else "",
            "ci_high": _number(found.high) if found else "",
            "reported": "" if self.claim.reported is None else str(self.claim.reported),
            "verdict": self.verdict,
            "source": self.claim.source,
        }


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.6g}"


def verdict(comparison: Comparison, found: Interval) -> str:
    """Judge one comparison by its interval."""
    if found.count == 0:
        return "not run"
    if math.isnan(found.low):
        return "inconclusive"
    if comparison.direction == "higher":
        low, high = comparison.margin, math.inf
    elif comparison.direction == "lower":
        low, high = -math.inf, comparison.margin
    else:
        low, high = comparison.margin - comparison.tolerance, comparison.margin + comparison.tolerance
    slack = 1e-12 * max(1.0, abs(comparison.margin))
    if low - slack <= found.low and found.high <= high + slack:
        return "supported"
    if found.high < low - slack or found.low > high + slack:
        return "contradicted"
    return "inconclusive"


def effects(comparison: Comparison, table: Table) -> list[float]:
    """Effects of a comparison, one per seed that has everything it needs."""
    row = table.row(comparison.method)
    ours = row.values(comparison.metric) if row else {}
    if comparison.compare == "value" or comparison.baseline is None:
        return [ours[seed] for seed in sorted(ours)]
    other = table.row(comparison.baseline)
    theirs = other.values(comparison.metric) if other else {}
    pairs = paired(ours, theirs)
    if comparison.compare == "ratio":
        return [mine / base for mine, base in pairs if base]
    return [mine - base for mine, base in pairs]


def judge(claim: Claim, study: Study, tables: dict[tuple[str, str], Table]) -> Judged:
    """Judge one claim on a study's results."""
    dataset = claim.dataset(study.tier)
    comparisons = claim.comparisons(study.tier)
    if dataset is None:
        return Judged(claim, "not run", comparisons[0], None, f"not a claim for the {study.tier} tier", "")
    if (claim.task, dataset) not in study.tables:
        return Judged(claim, "not run", comparisons[0], None, f"{claim.task}/{dataset} is not in this study", dataset)
    table = tables.setdefault((claim.task, dataset), collect_table(study, claim.task, dataset))
    found = [interval(effects(comparison, table)) for comparison in comparisons]
    verdicts = [verdict(comparison, one) for comparison, one in zip(comparisons, found, strict=True)]
    for decisive in ("contradicted", "not run", "inconclusive", "supported"):
        if decisive in verdicts:
            index = verdicts.index(decisive)
            reason = found[index].method if decisive != "not run" else "no seed has both rows"
            return Judged(claim, decisive, comparisons[index], found[index], reason, dataset)
    raise AssertionError("a claim has at least one comparison")


def judge_all(study: Study) -> list[Judged]:
    """Judge every claim of every paper."""
    tables: dict[tuple[str, str], Table] = {}
    return [judge(claim, study, tables) for claim in load_claims()]


def write_claims(study: Study) -> list[Judged]:
    """Write ``claims.csv`` and ``claims.md``."""
    judged = judge_all(study)
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(one.row() for one in judged)
    write_text(study.results / "claims.csv", buffer.getvalue())
    write_text(study.results / "claims.md", claims_markdown(study, judged))
    return judged


def shown_effect(judged: Judged) -> str:
    """The effect with its interval, as people read it; empty where there is none."""
    found = judged.found
    if found is None or found.count == 0:
        return ""
    if math.isnan(found.low):
        return f"{found.mean:.3g}"
    return f"{found.mean:.3g} [{found.low:.3g}, {found.high:.3g}]"


def asked(comparison: Comparison) -> str:
    """What a comparison asks for, in symbols."""
    sign = {"higher": "≥", "lower": "≤", "equal": "="}[comparison.direction]
    ours = f"{comparison.metric}({comparison.method})"
    if comparison.compare == "value" or comparison.baseline is None:
        left = ours
    else:
        left = f"{ours} {'÷' if comparison.compare == 'ratio' else '−'} {comparison.metric}({comparison.baseline})"
    tolerance = f" ± {comparison.tolerance:g}" if comparison.direction == "equal" and comparison.tolerance else ""
    return f"{left} {sign} {comparison.margin:g}{tolerance}"


def claims_markdown(study: Study, judged: list[Judged]) -> str:
    """The verdicts as a Markdown table."""
    from atlas.report.tables import markdown_table

    header = ["claim", "statement", "asked", "effect [95 % CI]", "seeds", "verdict", "paper reports"]
    rows = [
        [
            one.claim.id,
            one.claim.statement,
            asked(one.comparison),
            shown_effect(one),
            str(one.found.count if one.found else 0),
            one.verdict + (f" ({one.reason})" if one.verdict == "not run" else ""),
            "" if one.claim.reported is None else str(one.claim.reported),
        ]
        for one in judged
    ]
    note = (
        f"Claims of the papers, judged on the {study.tier} tier over paired seeds. The interval is Student's t for up to "
        "20 seeds, the BCa bootstrap beyond."
    )
    return f"# Claims, {study.tier} tier\n\n{note}\n\n{markdown_table(header, rows)}"


def print_claims(study: Study) -> None:
    """Print the verdicts on the terminal."""
    import sys

    judged = judge_all(study)
    if not sys.stdout.isatty():
        for one in judged:
            print("\t".join((one.claim.id, one.verdict, shown_effect(one), asked(one.comparison))))
        return
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    styles = {"supported": "green", "contradicted": "red", "inconclusive": "yellow", "not run": "dim"}
    table = RichTable("claim", "statement", "effect [95 % CI]", "verdict", box=None, header_style="bold")
    for one in judged:
        cells = (
            one.claim.id,
            Text(one.claim.statement),
            Text(shown_effect(one)),
            Text(one.verdict, styles[one.verdict]),
        )
        table.add_row(*cells)
    Console().print(table)
