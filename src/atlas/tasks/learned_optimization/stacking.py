"""Several seeds of a row that is meta-trained plainly, at once: their policies take their windows together.

Every run keeps its optimizees, mini-batches, meta-optimizer, curves, and its state to go on from; what is joined are the updates
of a window and their derivatives. Rows with replicates of their own join those already, and train seed by seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from atlas.harness.lockstep import Lockstep, Randomness
from atlas.l2o.meta import same_kind, windows_at_once
from atlas.tasks.learned_optimization.competitors import MetaFitting, MetaTrained
from atlas.tasks.learned_optimization.data import load_arena

if TYPE_CHECKING:
    from atlas.harness.run import Run


def train_together(runs: Sequence[Run]) -> list[Mapping[str, Any] | Exception]:
    """Meta-train several seeds of one row, from wherever an earlier process stopped.

    Returns
    -------
    list
        For every run what :func:`.training.train` returns.

    Raises
    ------
    Interrupted
        A signal asked it to stop; the state of every run is saved.
    """
    arena = load_arena(runs[0])  # examples, and how they are divided, are the same for all seeds
    randomness = [Randomness(run) for run in runs]
    fittings = []
    for run, own in zip(runs, randomness, strict=True):
        with own():
            fittings.append(MetaFitting(cast(MetaTrained, run.build()[0]), arena))
    for members in _groups(fittings):
        lockstep = Lockstep([fittings[index].loop for index in members], [randomness[index] for index in members])
        for _ in lockstep:
            rows = windows_at_once([fittings[index].trainer for index in members])
            for index, row in zip(members, rows, strict=True):
                fittings[index].log(row)
    return [fitting.end() for fitting in fittings]


def _groups(fittings: Sequence[MetaFitting]) -> list[list[int]]:
    """Which fittings take their steps together: those that have the same ones left, with policies of one kind."""
    groups: list[list[int]] = []
    for index, fitting in enumerate(fittings):
        for members in groups:
            other = fittings[members[0]]
            if other.loop.start == fitting.loop.start and same_kind(other.policy, fitting.policy):
                members.append(index)
                break
        else:
            groups.append([index])
    return groups
