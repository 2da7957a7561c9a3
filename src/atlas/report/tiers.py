"""Every claim once, with its verdict in each tier beside the others: ``results/claims.md``."""

from __future__ import annotations

from pathlib import Path

from atlas.harness.claims import Claim, load_claims
from atlas.harness.files import write_text
from atlas.harness.registry import load
from atlas.harness.study import CONFIG_FOLDER, Study
from atlas.report.markdown import escape, grid
from atlas.report.told import told_line
from atlas.report.verdicts import Judged, judge_all

ALL_CLAIMS = Path("results/claims.md")
ORDER = ("demo", "desk", "lab", "paper")
NOT_RUN, NOT_ASKED = "not run", "·"


def judged_tiers(root: Path = Path()) -> list[str]:
    """Tiers in which some claim is judged and whose study is there, from the smallest; those of one's own come last."""
    named = {tier for claim in load_claims() for tier in claim.tiers}
    tiers = [tier for tier in sorted(named) if (root / CONFIG_FOLDER / f"{tier}.yaml").is_file()]
    return sorted(tiers, key=lambda tier: ORDER.index(tier) if tier in ORDER else len(ORDER))


def claims_by_tier(root: Path = Path()) -> str:
    """Markdown: one row per claim, one column per tier, with the effect, its interval and the number of seeds.

    Raises
    ------
    UserError
        A study's file cannot be read.
    """
    tiers = judged_tiers(root)
    judged = {tier: {judgement.claim.id: judgement for judgement in judge_all(Study.read(tier, root))} for tier in tiers}
    text = "# Claims, tier by tier\n\n" + escape(
        f"Every claim once, as it is judged in the studies {', '.join(tiers)}. “{NOT_RUN}”: the study asks it, and its rows "
        f"have not been computed; “{NOT_ASKED}”: the study does not ask it. Tiers ask a claim at their own scale, some with "
        "another margin: results/<tier>/claims.md has what each asks, and what was found seed by seed."
    )
    claims = load_claims()
    for slug in dict.fromkeys(claim.paper for claim in claims):
        rows = [_row(claim, [judged[tier][claim.id] for tier in tiers]) for claim in claims if claim.paper == slug]
        text += f"\n\n**{escape(load().papers[slug].title)}** ({slug})\n\n" + grid(["claim", "statement", *tiers], rows).rstrip()
    return text + "\n"


def write_all_claims(root: Path = Path()) -> Path:
    """Write ``results/claims.md`` and return its path."""
    path = root / ALL_CLAIMS
    write_text(path, claims_by_tier(root))
    return path


def _row(claim: Claim, verdicts: list[Judged]) -> list[str]:
    against = " (against the method)" if claim.against else ""
    return [claim.id, f"{claim.statement}{against}", *map(_cell, verdicts)]


def _cell(judgement: Judged) -> str:
    """The verdict in one tier, with the number that decides."""
    if not judgement.dataset:
        return NOT_ASKED
    if judgement.verdict == "not run":
        return NOT_RUN
    part = judgement.decisive
    seeds = str(part.found.count) if part.found.count == part.planned else f"{part.found.count} of {part.planned}"
    data = f", {judgement.substitution}" if judgement.substitution else ""
    return f"{told_line(judgement)}: {part.effect} ({seeds} seeds{data})"
