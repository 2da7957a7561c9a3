"""Verdicts as they are told: ``claims.csv``, the values behind them, Markdown, and the terminal."""

from __future__ import annotations

import csv
import io
import math
import sys
from collections.abc import Iterable, Sequence

from atlas.harness.files import write_text
from atlas.harness.registry import Metric, load
from atlas.harness.study import Study
from atlas.report.markdown import escape, grid
from atlas.report.numbers import effect_text, effect_unit, metric_text
from atlas.report.verdicts import Judged, judge_all

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
    "evidence",
    "whose",
    "against",
    "fragile",
    "replicates_needed",
    "test_size",
    "parts",
    "tightest",
    "cost",
    "note",
)
VALUES = ("id", "part", "metric", "method", "baseline", "seed", "method_value", "baseline_value", "effect")


def claim_row(one: Judged) -> dict[str, str]:
    """A claim as a row of ``claims.csv``."""
    part, tightest = one.decisive, one.tightest
    found, asks = part.found, part.comparison
    return {
        "id": one.claim.id,
        "paper": one.claim.paper,
        "statement": one.statement,
        "metric": asks.metric,
        "method": asks.method,
        "baseline": asks.baseline or "",
        "n_seeds": str(found.count),
        "effect": _number(found.mean),
        "ci_low": _number(found.low),
        "ci_high": _number(found.high),
        "reported": "" if one.claim.reported is None else str(one.claim.reported),
        "verdict": one.verdict,
        "source": one.claim.source,
        "evidence": one.evidence,
        "whose": one.claim.whose,
        "against": "yes" if one.claim.against else "no",
        "fragile": one.fragile,
        "replicates_needed": one.replicates_text,
        "test_size": one.tested,
        "parts": "; ".join(f"{each.asked}: {each.effect or 'no value'}: {each.verdict}" for each in one.parts if each.table),
        "tightest": tightest.asked if tightest else "",
        "cost": part.costs.text if part.costs else "",
        "note": one.note,
    }


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.6g}"


def values_csv(judged: Iterable[Judged]) -> str:
    """The value of every seed behind every comparison, in full precision."""
    lines = []
    for one in judged:
        for place, part in enumerate(one.parts, 1):
            asks = part.comparison
            for seed, effect in part.by_seed.items():
                theirs = "" if part.theirs is None else repr(part.theirs[seed])
                named = (one.claim.id, place, asks.metric, asks.method, asks.baseline or "", seed)
                lines.append([*map(str, named), repr(part.ours[seed]), theirs, repr(effect)])
    return _csv(VALUES, lines)


def _csv(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(lines)
    return buffer.getvalue()


def write_claims(study: Study) -> list[Judged]:
    """Write ``claims.csv``, ``claims-values.csv`` and ``claims.md``."""
    judged = judge_all(study)
    rows = [claim_row(one) for one in judged]
    write_text(study.results / "claims.csv", _csv(COLUMNS, [[row[column] for column in COLUMNS] for row in rows]))
    write_text(study.results / "claims-values.csv", values_csv(judged))
    write_text(study.results / "claims.md", f"# Claims, {study.tier} tier\n\n{claims_markdown(study, judged)}")
    return judged


def rule(study: Study) -> str:
    """How claims are judged, for the reader."""
    return (
        f"Each claim is judged on the {study.tier} tier’s runs, paired by seed: supported if its whole 95 % confidence "
        "interval satisfies what is asked, contradicted if none of it does, else inconclusive. A verdict that leaving out one "
        "seed changes is called fragile. The interval is Student’s t for up to 20 seeds, the studentised bootstrap beyond; "
        "counted numbers that are the same on every seed are exact, agreement of anything else settles nothing. Claims are "
        "judged one by one: of 40 that are exactly on the edge, about two get a verdict by chance."
    )


def spread_of_splits(judged: Iterable[Judged]) -> str:
    """What the intervals do not cover, for the reader; empty where nothing is tested on held-out data."""
    return (
        "Intervals cover the noise of training and, where a seed draws them, of splits and scenes; a test set that all seeds "
        "share is one sample, whose size stands beside the verdict."
        if any(one.tested for one in judged)
        else ""
    )


def told_line(one: Judged) -> str:
    """The verdict in the line that is printed, with what it must not be read without."""
    unequal = one.decisive.unequal if one.verdict != "not run" else ""
    return f"{one.told}{f', {unequal}' if unequal else ''}"


def claims_markdown(study: Study, judged: list[Judged]) -> str:
    """Findings against the methods, and the verdicts as a Markdown table per paper."""
    header = ["claim", "statement", "asked", "effect [95 % interval]", "verdict", "evidence", "paper reports"]
    text = "".join(f"{escape(note)}\n\n" for note in (rule(study), spread_of_splits(judged)) if note)
    findings = against(judged)
    if findings:
        text += "**Findings against the methods**\n\n"
        text += "".join(f"- {one.told}: {escape(finding(one))} ({one.claim.id})\n" for one in findings) + "\n"
    run = [one for one in judged if one.verdict != "not run"]
    for slug in dict.fromkeys(one.claim.paper for one in run):
        mine = [one for one in run if one.claim.paper == slug]
        text += f"\n**{escape(load().papers[slug].title)}** ({slug})\n\n"
        text += grid(header, [line for one in mine for line in _markdown_rows(one)])
    return text + _idle_markdown([one for one in judged if one.verdict == "not run"])


def _idle_markdown(idle: list[Judged]) -> str:
    """Claims that were not judged, folded away: a small study has few rows and many claims."""
    if not idle:
        return ""
    lines = "".join(f"- {one.claim.id}: {escape(f'{one.statement} {one.reason}.')}\n" for one in idle)
    title = f"{len(idle)} claim{'s' if len(idle) > 1 else ''} not run"
    return f"\n<details>\n<summary>{title}, and why</summary>\n\n{lines}\n</details>\n"


def against(judged: Iterable[Judged]) -> list[Judged]:
    """What speaks against the methods, the firm before the fragile."""
    return sorted((one for one in judged if one.speaks_against), key=lambda one: bool(one.fragile))


def finding(one: Judged) -> str:
    """A finding against a method in sentences."""
    return f"{'' if one.claim.against else 'It does not hold that: '}{one.statement} {found_line(one)}"


def found_line(one: Judged) -> str:
    """What was asked and what was found, in a sentence."""
    part = one.decisive
    unequal = f", {part.unequal}" if part.unequal else ""
    data = f" ({one.substitution})" if one.substitution else ""
    return f"Asked: {part.asked}. Found: {part.effect} on {part.found.count} seeds{unequal}; {one.evidence}{data}."


def _markdown_rows(one: Judged) -> list[list[str]]:
    """A claim as lines of a table: one for every comparison."""
    lines = []
    for place, part in enumerate(one.parts):
        where = f" on {one.dataset}" if one.dataset else ""
        where += f" ({one.substitution})" if one.substitution else ""
        tight = " (tightest)" if part is one.tightest else ""
        first = place == 0
        lines.append(
            [
                one.claim.id if first else "",
                one.statement if first else "",
                part.asked + where + tight,
                f"{part.effect} ({part.basis})" if part.found.count else "",
                _verdict_cell(one) if first else part.verdict,
                f"{one.evidence}, {one.claim.whose}" if first else "",
                "" if one.claim.reported is None or not first else str(one.claim.reported),
            ]
        )
    return lines


def _verdict_cell(one: Judged) -> str:
    notes = [one.fragile, f"{one.replicates_text} seeds would settle it" if unsettled(one) else ""]
    return told_line(one) + "".join(f" ({note})" for note in notes if note)


def unsettled(one: Judged) -> bool:
    """Whether it is worth saying how many seeds would settle it: open or fragile, and more than there are."""
    return one.replicates > one.decisive.found.count and (one.verdict == "inconclusive" or bool(one.fragile))


def print_claims(study: Study) -> None:
    """Print the verdicts: a table on a terminal, tab-separated lines in a pipe."""
    judged = judge_all(study)
    if not sys.stdout.isatty():
        for one in judged:
            print("\t".join((one.claim.id, told_line(one), one.decisive.effect, one.decisive.asked)))
        return
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    styles = {"supported": "green", "contradicted": "red", "inconclusive": "yellow", "not run": "dim"}
    table = RichTable("claim", "statement", "effect [95 % interval]", "verdict", box=None, header_style="bold")
    for one in judged:
        texts = (one.claim.id, one.statement, one.decisive.effect or one.reason)
        table.add_row(*map(Text, texts), Text(told_line(one), styles[one.verdict]))
    Console().print(table)


def seed_numbers(one: Judged) -> list[tuple[str, list[tuple[int, str, str, str]]]]:
    """For every comparison: what is asked, and seed, value of the method, of the baseline, and effect, as they are shown."""
    found = []
    for part in one.parts:
        metric, compare = part.metric, part.comparison.compare
        lines = [
            (
                seed,
                _value(metric, part.ours[seed]),
                "" if part.theirs is None else _value(metric, part.theirs[seed]),
                "" if compare == "value" else effect_text(metric, compare, effect) + effect_unit(metric, compare),
            )
            for seed, effect in part.by_seed.items()
        ]
        found.append((part.asked, lines))
    return [item for item in found if item[1]]


def _value(metric: Metric | None, value: float) -> str:
    return metric_text(metric, value) if metric else f"{value:.4g}"
