"""What the papers' abstracts promise, and what answers it: sentence → rows → claim → verdict, in ``docs/coverage.md``.

Sentences and the claims that answer them stand in ``methods/<paper>/claims.yaml``; verdicts in ``results/<tier>/claims.csv``. A
tier that judges a claim, but has not been run, is *not run*.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

from atlas.errors import UserError
from atlas.harness.claims import Claim, Headline, load_claims, load_headlines
from atlas.harness.files import write_text
from atlas.harness.registry import load

PAGE = Path("docs/coverage.md")
TIERS = ("demo", "desk", "lab", "paper")
NOT_RUN = "not run"
MISSING = "no claim yet"
Verdicts = Mapping[str, Mapping[str, str]]
"""Tier to claim to verdict."""

HEAD = """# What the abstracts promise, and what answers it

Every sentence of the ten abstracts that a run can decide, in our own words, with the rows that are compared, the claim that is
judged and what came out, tier by tier. *demo* and *desk* run on embedded data and processors, *lab* on one GPU, *paper* on a
cluster; a tier that is not named has no form of the claim. Numbers, margins and intervals stand in each study's report.

This page is written by `atlas coverage` from `src/atlas/methods/*/claims.yaml` and `results/*/claims.csv`.
"""


def write_coverage(root: Path) -> Path:
    """Write ``docs/coverage.md`` below a checkout's root, and return its path.

    Raises
    ------
    UserError
        There is no ``docs`` folder: this is no checkout.
    """
    if not (root / PAGE.parent).is_dir():
        raise UserError(f"there is no folder {PAGE.parent} here; call atlas coverage in a checkout, or name one with --directory")
    write_text(root / PAGE, coverage(read_verdicts(root / "results")))
    return PAGE


def read_verdicts(results: Path) -> dict[str, dict[str, str]]:
    """Verdicts of every tier that has been judged, tier to claim to verdict."""
    files = {tier: results / tier / "claims.csv" for tier in TIERS}
    return {tier: parse_verdicts(path.read_text(encoding="utf-8")) for tier, path in files.items() if path.is_file()}


def parse_verdicts(text: str) -> dict[str, str]:
    """Claim to verdict, from the text of a ``claims.csv``."""
    return {row["id"]: row["verdict"] for row in csv.DictReader(text.splitlines())}


def coverage(verdicts: Verdicts) -> str:
    """Render as Markdown which headline of each abstract is judged by which claim, and how it stands."""
    claims, headlines = load_claims(), load_headlines()
    lines = [HEAD]
    for slug in sorted(load().papers):
        paper = load().papers[slug]
        own = [headline for headline in headlines if headline.paper == slug]
        if not own:
            continue
        lines += [f"## {paper.title}", "", f"{paper.citation}.", ""]
        lines += ["| the abstract | rows | claim | state |", "|---|---|---|---|"]
        for headline in own:
            answering = [claim for claim in claims if claim.paper == slug and headline.id in claim.answers]
            lines += _rows(headline, answering, verdicts)
        lines.append("")
    return "\n".join(lines)


def _rows(headline: Headline, claims: list[Claim], verdicts: Verdicts) -> list[str]:
    """Lines of one sentence: one for each claim that answers it; the sentence stands in the first."""
    sentence = headline.statement + (f" *{headline.note}*" if headline.note else "")
    if not claims:
        return [f"| {sentence} | | {MISSING} | |"]
    lines = [f"{_compared(claim)} | `{claim.id}`: {claim.statement} | {_state(claim, verdicts)} |" for claim in claims]
    return [f"| {sentence} | {lines[0]}", *(f"| | {line}" for line in lines[1:])]


def _compared(claim: Claim) -> str:
    """Rows of the first comparison on the largest tier that judges the claim, with the benchmark."""
    tier = next((name for name in reversed(TIERS) if claim.dataset(name)), None)
    if tier is None:
        return ""
    first, *others = claim.comparisons(tier)
    named = [first.method, *(other.method for other in others if other.metric == first.metric)]
    methods = ", ".join(f"`{name}`" for name in dict.fromkeys(named))
    against = f" against `{first.baseline}`" if first.baseline else ""
    return f"{methods}{against} on {claim.task}/{claim.dataset(tier)}"


def _state(claim: Claim, verdicts: Verdicts) -> str:
    """Verdicts of the tiers that judge the claim."""
    tiers = [tier for tier in TIERS if claim.dataset(tier)]
    return ", ".join(f"{tier}: {verdicts.get(tier, {}).get(claim.id, NOT_RUN)}" for tier in tiers)
