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


def claim_row(judgement: Judged) -> dict[str, str]:
    """A claim as a row of ``claims.csv``."""
    part, tightest = judgement.decisive, judgement.tightest
    effect, asks = part.found, part.comparison
    return {
        "id": judgement.claim.id,
        "paper": judgement.claim.paper,
        "statement": judgement.statement,
        "metric": asks.metric,
        "method": asks.method,
        "baseline": asks.baseline or "",
        "n_seeds": str(effect.count),
        "effect": _number(effect.mean),
        "ci_low": _number(effect.low),
        "ci_high": _number(effect.high),
        "reported": "" if judgement.claim.reported is None else str(judgement.claim.reported),
        "verdict": judgement.verdict,
        "source": judgement.claim.source,
        "evidence": judgement.evidence,
        "whose": judgement.claim.whose,
        "against": "yes" if judgement.claim.against else "no",
        "fragile": judgement.fragile,
        "replicates_needed": judgement.replicates_text,
        "test_size": judgement.tested,
        "parts": "; ".join(
            f"{each.asked}: {each.effect or 'no value'}: {each.verdict}" for each in judgement.parts if each.table
        ),
        "tightest": tightest.asked if tightest else "",
        "cost": part.costs.text if part.costs else "",
        "note": judgement.note,
    }


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.6g}"


def values_csv(judged: Iterable[Judged]) -> str:
    """The value of every seed behind every comparison, in full precision."""
    lines = []
    for judgement in judged:
        for number, part in enumerate(judgement.parts, 1):
            asks = part.comparison
            for seed, effect in part.by_seed.items():
                theirs = "" if part.theirs is None else repr(part.theirs[seed])
                named = (judgement.claim.id, number, asks.metric, asks.method, asks.baseline or "", seed)
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
    for name, text in claims_texts(study, judged).items():
        write_text(study.results / name, text)
    return judged


def refresh_claims(study: Study, judged: list[Judged]) -> None:
    """Write those files of verdicts again that say anything else."""
    for name, text in claims_texts(study, judged).items():
        path = study.results / name
        if not path.is_file() or path.read_text() != text:
            write_text(path, text)


def claims_texts(study: Study, judged: list[Judged]) -> dict[str, str]:
    """Contents of the files of verdicts, by their names."""
    rows = [claim_row(judgement) for judgement in judged]
    return {
        "claims.csv": _csv(COLUMNS, [[row[column] for column in COLUMNS] for row in rows]),
        "claims-values.csv": values_csv(judged),
        "claims.md": f"# Claims, {study.tier} tier\n\n{claims_markdown(study, judged)}",
    }


def rule(study: Study) -> str:
    """Explain to the reader how claims are judged on a study's tier."""
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
        if any(judgement.tested for judgement in judged)
        else ""
    )


def told_line(judgement: Judged) -> str:
    """The verdict in the line that is printed, with what it must not be read without."""
    unequal = judgement.decisive.unequal if judgement.verdict != "not run" else ""
    return f"{judgement.told}{f', {unequal}' if unequal else ''}"


def claims_markdown(study: Study, judged: list[Judged]) -> str:
    """Findings against the methods, and the verdicts as a Markdown table per paper."""
    header = ["claim", "statement", "asked", "effect [95 % interval]", "verdict", "evidence", "paper reports"]
    text = "".join(f"{escape(note)}\n\n" for note in (rule(study), spread_of_splits(judged)) if note)
    findings = against(judged)
    if findings:
        text += "**Findings against the methods**\n\n"
        text += (
            "".join(f"- {judgement.told}: {escape(finding(judgement))} ({judgement.claim.id})\n" for judgement in findings) + "\n"
        )
    run = [judgement for judgement in judged if judgement.verdict != "not run"]
    for slug in dict.fromkeys(judgement.claim.paper for judgement in run):
        mine = [judgement for judgement in run if judgement.claim.paper == slug]
        text += f"\n**{escape(load().papers[slug].title)}** ({slug})\n\n"
        text += grid(header, [line for judgement in mine for line in _markdown_rows(judgement)])
    return text + _idle_markdown([judgement for judgement in judged if judgement.verdict == "not run"])


def _idle_markdown(idle: list[Judged]) -> str:
    """Claims that were not judged, folded away: a small study has few rows and many claims."""
    if not idle:
        return ""
    lines = "".join(f"- {judgement.claim.id}: {escape(f'{judgement.statement} {judgement.reason}.')}\n" for judgement in idle)
    title = f"{len(idle)} claim{'s' if len(idle) > 1 else ''} not run"
    return f"\n<details>\n<summary>{title}, and why</summary>\n\n{lines}\n</details>\n"


def against(judged: Iterable[Judged]) -> list[Judged]:
    """What speaks against the methods, the firm before the fragile."""
    return sorted((judgement for judgement in judged if judgement.speaks_against), key=lambda judgement: bool(judgement.fragile))


def finding(judgement: Judged) -> str:
    """Put a finding against a method into sentences."""
    return f"{'' if judgement.claim.against else 'It does not hold that: '}{judgement.statement} {found_line(judgement)}"


def found_line(judgement: Judged) -> str:
    """What was asked and what was found, in a sentence."""
    part = judgement.decisive
    unequal = f", {part.unequal}" if part.unequal else ""
    data = f" ({judgement.substitution})" if judgement.substitution else ""
    return f"Asked: {part.asked}. Found: {part.effect} on {part.found.count} seeds{unequal}; {judgement.evidence}{data}."


def _markdown_rows(judgement: Judged) -> list[list[str]]:
    """A claim as lines of a table: one for every comparison."""
    lines = []
    for index, part in enumerate(judgement.parts):
        where = f" on {judgement.dataset}" if judgement.dataset else ""
        where += f" ({judgement.substitution})" if judgement.substitution else ""
        tight = " (tightest)" if part is judgement.tightest else ""
        first = index == 0
        lines.append(
            [
                judgement.claim.id if first else "",
                judgement.statement if first else "",
                part.asked + where + tight,
                f"{part.effect} ({part.basis})" if part.found.count else "",
                _verdict_cell(judgement) if first else part.verdict,
                f"{judgement.evidence}, {judgement.claim.whose}" if first else "",
                "" if judgement.claim.reported is None or not first else str(judgement.claim.reported),
            ]
        )
    return lines


def _verdict_cell(judgement: Judged) -> str:
    notes = [judgement.fragile, f"{judgement.replicates_text} seeds would settle it" if unsettled(judgement) else ""]
    return told_line(judgement) + "".join(f" ({note})" for note in notes if note)


def unsettled(judgement: Judged) -> bool:
    """Whether it is worth saying how many seeds would settle it: open or fragile, and more than there are."""
    return judgement.replicates > judgement.decisive.found.count and (
        judgement.verdict == "inconclusive" or bool(judgement.fragile)
    )


def print_claims(study: Study) -> None:
    """Print the verdicts: a table on a terminal, tab-separated lines in a pipe."""
    judged = judge_all(study)
    if not sys.stdout.isatty():
        for judgement in judged:
            print("\t".join((judgement.claim.id, told_line(judgement), judgement.decisive.effect, judgement.decisive.asked)))
        return
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    styles = {"supported": "green", "contradicted": "red", "inconclusive": "yellow", "not run": "dim"}
    table = RichTable("claim", "statement", "effect [95 % interval]", "verdict", box=None, header_style="bold")
    for judgement in judged:
        texts = (judgement.claim.id, judgement.statement, judgement.decisive.effect or judgement.reason)
        table.add_row(*map(Text, texts), Text(told_line(judgement), styles[judgement.verdict]))
    Console().print(table)


def seed_numbers(judgement: Judged) -> list[tuple[str, list[tuple[int, str, str, str]]]]:
    """For every comparison: what is asked, and seed, value of the method, of the baseline, and effect, as they are shown."""
    numbers = []
    for part in judgement.parts:
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
        numbers.append((part.asked, lines))
    return [item for item in numbers if item[1]]


def _value(metric: Metric | None, value: float) -> str:
    return metric_text(metric, value) if metric else f"{value:.4g}"
