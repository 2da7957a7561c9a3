"""The meta-optimizer: Adam over stacked replicates, with adaptive clipping per tensor; replicates never touch each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from atlas.methods.optimizer_amalgamation.noise import tensor_norm
from atlas.methods.optimizer_amalgamation.settings import TrainerConfig

DEFAULT = TrainerConfig()
SMALLEST_NORM = 1e-3


def clip_adaptively(gradient: Tensor, weight: Tensor, clip: float = DEFAULT.clip, smallest: float = SMALLEST_NORM) -> Tensor:
    """Adaptive gradient clipping of stacked replicates (R, …): ‖G‖ at most ``clip`` · max(‖W‖, ``smallest``) per tensor.

    Norms are Frobenius, and direction is kept. The rule of NFNets (Brock et al., ICML 2021) is per unit; this one per tensor.
    """
    largest = clip * tensor_norm(weight).clamp(min=smallest)
    return gradient * (largest / tensor_norm(gradient).clamp(min=1e-30)).clamp(max=1.0)


class StackedAdam:
    """Adam on stacked replicates, each with its own count of steps.

    Parameters
    ----------
    parameters : mapping
        Name to leaf tensor (R, …).
    lr : float
        Step size.
    clip : float
        Of :func:`clip_adaptively`; 0 leaves gradients as they are.

    Raises
    ------
    ValueError
        ``lr`` is not positive.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        lr: float = DEFAULT.lr,
        clip: float = DEFAULT.clip,
        betas: tuple[float, float] = (0.9, 0.999),
    ) -> None:
        if not lr > 0:
            raise ValueError(f"lr must be positive, not {lr}")
        self.parameters, self.lr, self.clip, self.betas = dict(parameters), lr, clip, betas
        count = len(next(iter(self.parameters.values())))
        self.steps = torch.zeros(count, dtype=torch.float64)
        self.first = {name: torch.zeros_like(value) for name, value in self.parameters.items()}
        self.second = {name: torch.zeros_like(value) for name, value in self.parameters.items()}

    @torch.no_grad()
    def step(self, gradients: Mapping[str, Tensor], active: Sequence[int]) -> list[int]:
        """Update the active replicates (gradients are (R, …)); returns those that were skipped: gradients not finite."""
        taking = torch.zeros(len(self.steps), dtype=torch.bool)
        taking[list(active)] = True
        finite = torch.stack([g.reshape(len(g), -1).isfinite().all(1).cpu() for g in gradients.values()]).all(0)
        skipped = [replicate for replicate in active if not finite[replicate]]
        taking &= finite
        self.steps += taking
        beta1, beta2 = self.betas
        counts = self.steps.clamp(min=1)
        for name, weight in self.parameters.items():
            view = (-1, *[1] * (weight.ndim - 1))
            mask = taking.to(weight.device).view(view)
            gradient = torch.where(mask, gradients[name], 0.0)
            if self.clip:
                gradient = clip_adaptively(gradient, weight, self.clip)
            self.first[name] = torch.where(mask, beta1 * self.first[name] + (1 - beta1) * gradient, self.first[name])
            self.second[name] = torch.where(mask, beta2 * self.second[name] + (1 - beta2) * gradient.square(), self.second[name])
            mean = self.first[name] / (1 - beta1**counts).to(weight).view(view)
            square = self.second[name] / (1 - beta2**counts).to(weight).view(view)
            weight -= torch.where(mask, self.lr * mean / (square.sqrt() + 1e-8), 0.0)
        return skipped

    def numbers(self, replicate: int) -> dict[str, Any]:
        """Return a copy of one replicate's count of steps and moments, for :meth:`assign`."""
        return {
            "steps": float(self.steps[replicate]),
            "first": {name: value[replicate].clone() for name, value in self.first.items()},
            "second": {name: value[replicate].clone() for name, value in self.second.items()},
        }

    def assign(self, replicate: int, numbers: Mapping[str, Any]) -> None:
        """Put what :meth:`numbers` returned in a replicate's place."""
        self.steps[replicate] = numbers["steps"]
        for name in self.parameters:
            self.first[name][replicate] = numbers["first"][name]
            self.second[name][replicate] = numbers["second"][name]
