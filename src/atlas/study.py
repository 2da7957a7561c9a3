"""The plan, for everything above the harness: what the Snakefile, DVC and the command line read."""

from atlas.harness.agenda import MARKER, Agenda, Demands, agenda
from atlas.harness.run import Resources, Run
from atlas.harness.selection import select
from atlas.harness.study import Study
from atlas.harness.watch import Watch

__all__ = ["MARKER", "Agenda", "Demands", "Resources", "Run", "Study", "Watch", "agenda", "select"]
