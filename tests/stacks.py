"""What tests of seeds that are trained at once compare: runs and their weights."""

from __future__ import annotations

from atlas.harness.execute import train_run
from atlas.harness.files import read_tensors
from atlas.harness.run import Run


def farthest(first: Run, second: Run) -> float:
    """Largest difference between two runs' weights."""
    mine, other = read_tensors(first.weights), read_tensors(second.weights)
    assert mine.keys() == other.keys()
    return max(float((value.double() - other[name].double()).abs().max()) for name, value in mine.items())


def train_needs(run: Run) -> None:
    """Train what a run needs, and what that needs before it."""
    for needed in run.needs.values():
        train_needs(needed)
        train_run(needed)
