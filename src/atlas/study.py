"""The plan, for everything above the harness: what the Snakefile, DVC and the command line read."""

from functools import cache

from atlas.harness.agenda import MARKER, Agenda, Demands, agenda
from atlas.harness.options import WorkflowOptions
from atlas.harness.run import Resources, Run
from atlas.harness.selection import select
from atlas.harness.study import Study, declare_own
from atlas.harness.watch import Watch

__all__ = [
    "MARKER",
    "Agenda",
    "Demands",
    "Resources",
    "Run",
    "Study",
    "Watch",
    "WorkflowOptions",
    "agenda",
    "declare_own",
    "read_once",
    "select",
]


@cache
def read_once(tier: str) -> Study:
    """Return the study of a tier in the present folder, as it was when this process first asked."""
    return Study.read(tier)
