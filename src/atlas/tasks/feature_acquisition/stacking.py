"""The training loop for several seeds of a row at once: their small recurrent models take their steps together.

Every run keeps its streams, order, noise, curves, and its state to go on from; what is joined is the pass through the models and
the optimiser's step. A phase whose models cannot be joined is carried out seed by seed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from atlas.errors import AtlasError
from atlas.harness.lockstep import Lockstep, Randomness
from atlas.tasks.feature_acquisition.learner import Learner, Losses, Phase
from atlas.tasks.feature_acquisition.optimizers import StackedOptimizer
from atlas.tasks.feature_acquisition.training import PhaseFitting, finish, fit_phase, make_bench

if TYPE_CHECKING:
    from atlas.harness.run import Run
    from atlas.tasks.feature_acquisition.learner import Bench, JointPhase

Outcome = dict[str, Any] | Exception


class _Seed:
    """One run while several are trained at once."""

    def __init__(self, run: Run) -> None:
        self.randomness = Randomness(run)
        with self.randomness():
            self.bench: Bench = make_bench(run)
            self.learner: Learner = run.build()[0]
        self.phases: Iterator[Phase] = self.learner.phases(self.bench)
        self.error: Exception | None = None

    def next_phase(self) -> Phase | None:
        """What is to be trained next; ``None`` at the end."""
        with self.randomness():
            return next(self.phases, None)

    def fit(self, phase: Phase) -> None:
        """Carry a phase out by itself."""
        try:
            with self.randomness():
                fit_phase(self.bench, phase, self.learner)
        except AtlasError as error:
            self.error = error

    def outcome(self) -> Outcome:
        """What the training returns, or its error."""
        if self.error is not None:
            return self.error
        with self.randomness():
            return finish(self.bench, self.learner)


def train_together(runs: Sequence[Run]) -> list[Outcome]:
    """Train several seeds of one row, phase by phase, from wherever an earlier process stopped.

    Returns
    -------
    list
        For every run what :func:`.training.train` returns, or the error with which it failed; the others went on.

    Raises
    ------
    Interrupted
        A signal asked it to stop; the state of every run is saved.
    """
    seeds = [_Seed(run) for run in runs]
    while alive := [seed for seed in seeds if seed.error is None]:
        phases = [phase for seed in alive if (phase := seed.next_phase()) is not None]
        if not phases:
            break
        _fit(alive, phases)
    return [seed.outcome() for seed in seeds]


def _fit(seeds: Sequence[_Seed], phases: Sequence[Phase]) -> None:
    """Carry out one phase of every seed: together where they have the same steps left, and can be joined."""
    fittings = []
    for seed, phase in zip(seeds, phases, strict=True):
        with seed.randomness():
            fittings.append(PhaseFitting(seed.bench, phase, seed.learner))
    groups: dict[int, list[int]] = {}
    for index, fitting in enumerate(fittings):
        groups.setdefault(fitting.loop.start, []).append(index)
    for members in groups.values():
        chosen, own = [seeds[index] for index in members], [fittings[index] for index in members]
        joint = own[0].phase.joined([fitting.phase for fitting in own])
        if joint is None:
            for seed, fitting in zip(chosen, own, strict=True):
                seed.fit(fitting.phase)
        else:
            _fit_joint(chosen, own, joint)


def _fit_joint(seeds: Sequence[_Seed], fittings: Sequence[PhaseFitting], joint: JointPhase) -> None:
    """Run the loops of several seeds to their end, as one."""
    joined = Joined(fittings, joint)
    lockstep = Lockstep([fitting.loop for fitting in fittings], [seed.randomness for seed in seeds])
    for step in lockstep:
        losses = joined.take_step(step, lockstep.alive)
        for index in lockstep.alive:
            try:
                fittings[index].end_step(step, losses[index])
            except AtlasError as error:
                lockstep.fail(index, error)
    for index, (seed, fitting) in enumerate(zip(seeds, fittings, strict=True)):
        seed.error = lockstep.failed.get(index)
        fitting.end()


class Joined:
    """The same phase of several seeds, restored to the same step, while it trains as one."""

    def __init__(self, fittings: Sequence[PhaseFitting], joint: JointPhase) -> None:
        self.fittings, self.joint = fittings, joint
        self.protocol = fittings[0].bench.protocol
        self.optimizer = StackedOptimizer(joint.module, self.protocol)
        self.optimizer.join([fitting.optimizer for fitting in fittings])

    def take_step(self, step: int, alive: Sequence[int]) -> list[Losses]:
        """Take a step of all seeds, of which some still count; return the losses of each."""
        size = self.protocol.batch_size
        batches = [fitting.bench.streams.batch(size, step, fitting.phase.name) for fitting in self.fittings]
        losses = self.joint.losses(batches, step)
        self.optimizer.zero_grad()
        torch.cat([losses[index].total for index in alive]).sum().backward()
        self.optimizer.step()
        for index in alive:
            self.fittings[index].optimizer.count = self.optimizer.count
        return losses
