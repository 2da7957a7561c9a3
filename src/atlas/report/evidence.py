"""Kinds of evidence: what a verdict can mean depends on whether anything was measured, and on which data."""

from __future__ import annotations

from atlas.harness.claims import Claim
from atlas.harness.registry import resolve
from atlas.harness.run import Run

ARITHMETIC, SYNTHETIC, MODIFIED, REAL = "arithmetic", "synthetic", "modified real data", "real data"
KINDS = (REAL, MODIFIED, SYNTHETIC, ARITHMETIC)
RENDERED = frozenset({"lego-400", "nerf-synthetic"})
"""Data sets whose pictures a program has drawn: published and the same for everybody, but nothing was measured."""


def evidence(claim: Claim, run: Run | None) -> str:
    """Kind of evidence that a run gives for a claim.

    A claim says by itself that it is arithmetic; otherwise data that are generated on the fly, or were rendered, are synthetic,
    and the task tells whether it changed real ones. Empty where neither is known, because the study has no such run.
    """
    if claim.evidence:
        return claim.evidence
    if run is None:
        return ""
    if not run.data or run.data in RENDERED:
        return SYNTHETIC
    return MODIFIED if altered(run) else REAL


def altered(run: Run) -> str:
    """What was done to a run's data, in words; empty if nothing."""
    return _told(run, run.task_entry.altered) if run.data else ""


def tested(run: Run) -> str:
    """On how much a run is evaluated, in words; empty where settings do not tell."""
    return _told(run, run.task_entry.tested)


def _told(run: Run, reference: str) -> str:
    return str(resolve(reference, run.task_entry.package)(run)) if reference else ""
