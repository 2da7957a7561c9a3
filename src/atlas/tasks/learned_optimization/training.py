"""Training of a row: whatever its competitor does with the meta-training problem."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from atlas.tasks.learned_optimization.data import load_arena

if TYPE_CHECKING:
    from atlas.harness.run import Run


def train(run: Run) -> Mapping[str, Any]:
    """Let a row's competitor train on the meta-training problem; returns its summary."""
    return run.build()[0].train(load_arena(run))
