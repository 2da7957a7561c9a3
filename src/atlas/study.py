"""The plan, for everything above the harness: what the Snakefile, DVC and the command line read."""

from atlas.harness.stale import mark_stale, settle_times, stale_outputs
from atlas.harness.study import Resources, Run, Study

__all__ = ["Resources", "Run", "Study", "mark_stale", "settle_times", "stale_outputs"]
