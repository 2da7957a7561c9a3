"""Imitation: how far a student's trajectory is from those of its teachers, and what it is told to do about it (§3).

After update i, D_T = log(½ Σ_p (q_p − q_p^{(T)})² + ε) − log P for every teacher T; *mean* averages over teachers, *min-max*
takes the farthest at every step: the student minimises a maximum.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from atlas.l2o import Batch, Optimizee, Policy, map_state
from atlas.methods.optimizer_amalgamation.settings import Amalgamation
from atlas.methods.optimizer_amalgamation.teachers import EPS


def distance(difference: Tensor, huber: float = 0.0) -> tuple[Tensor, Tensor]:
    """Return D (…,) and its derivative (…, P) for differences q − q^{(T)} of (…, P).

    ``huber`` > 0 replaces ½ a² by δ (|a| − ½ δ) beyond δ.
    """
    size, slope = difference.abs(), difference
    pointwise = 0.5 * difference.square()
    if huber > 0:
        pointwise = torch.where(size <= huber, pointwise, huber * (size - 0.5 * huber))
        slope = difference.clamp(-huber, huber)
    total = pointwise.sum(-1) + EPS
    count = torch.tensor(float(difference.shape[-1]), dtype=difference.dtype)
    return total.log() - count.log().to(total.device), slope / total.unsqueeze(-1)


def teacher_weights(distances: Tensor, method: Amalgamation, alive: Tensor) -> Tensor:
    """(k, …): weight of every teacher. Teachers that diverged (``alive`` false) have none; where all did, all are 0."""
    if method == "minmax":
        farthest = torch.where(alive, distances, -torch.inf).argmax(0, keepdim=True)
        chosen = torch.zeros_like(distances).scatter_(0, farthest, 1.0)
        return torch.where(alive, chosen, 0.0)
    count = alive.sum(0, keepdim=True).clamp(min=1)
    return alive.to(distances.dtype) / count


@dataclass
class Lesson:
    """Teachers on trajectories of their own beside a student, over one window; the ``follow`` hook of :func:`atlas.l2o.unroll`.

    Attributes
    ----------
    teachers : list of Policy
        Frozen; k of them.
    thetas : Tensor
        (k, …, P): their parameters, in the optimizee's coordinates.
    states : list
        Their states, for flattened instances.
    scale : Tensor, optional
        The student's coordinate scale s; distances are measured in its coordinates q = θ/s.
    weight : Tensor
        (…, 1) or (): weight α of the imitation loss.
    steps : int
        Updates of the window; the loss is their mean.
    wins : Tensor
        (k, …): at how many steps each teacher was the farthest.
    """

    teachers: list[Policy]
    thetas: Tensor
    states: list[Any]
    problem: Optimizee
    method: Amalgamation
    weight: Tensor
    steps: int
    scale: Tensor | None = None
    huber: float = 0.0

    def __post_init__(self) -> None:
        self.alive = self.thetas.isfinite().all(-1)
        self.wins = torch.zeros(self.thetas.shape[:-1], dtype=self.thetas.dtype, device=self.thetas.device)
        self.total = torch.zeros(self.thetas.shape[1:-1], dtype=self.thetas.dtype, device=self.thetas.device)

    def __call__(self, index: int, q: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Let every teacher make its update i, and compare: the weighted loss (…,) and its derivative (…, P) for ``q`` (…, P)."""
        self._advance(batch)
        with torch.set_grad_enabled(q.requires_grad):
            difference = q - (self.thetas if self.scale is None else self.thetas / self.scale)
            difference = torch.where(self.alive.unsqueeze(-1), difference, 0.0)
            distances, slopes = distance(difference, self.huber)
            weights = teacher_weights(distances.detach(), self.method, self.alive)
            value = (weights * distances).sum(0) / self.steps
            slope = (weights.unsqueeze(-1) * slopes).sum(0) / self.steps
        self.total += value.detach()
        if self.method == "minmax":
            self.wins += weights
        return self.weight * value, self.weight.unsqueeze(-1) * slope

    @torch.no_grad()
    def _advance(self, batch: Batch) -> None:
        """One update of every teacher; all their gradients are one batched computation."""
        count, shape = len(self.teachers), self.thetas.shape
        many = map_state(lambda leaf: leaf.repeat(count, *[1] * (leaf.ndim - 1)), batch) if count > 1 else batch
        _, gradients = self.problem.gradients(self.thetas.reshape(-1, shape[-1]), many)
        updates = []
        for index, (policy, gradient) in enumerate(zip(self.teachers, gradients.chunk(count), strict=True)):
            update, self.states[index] = policy.step(gradient, self.states[index])
            updates.append(update)
        reached = self.thetas + torch.stack(updates).reshape(shape)
        self.alive = self.alive & reached.isfinite().all(-1)
        self.thetas = torch.where(self.alive.unsqueeze(-1), reached, self.thetas)
