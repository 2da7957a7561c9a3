"""Perturbing the student's weights while it is meta-trained, so that replicates end alike (stability-aware training, §4).

Perturbations act in meta-steps only; gradients are taken at the perturbed weights and applied to the clean ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from atlas.methods.optimizer_amalgamation.settings import Ascent, NoiseKind, NoiseSettings

Numbers = dict[str, Tensor]
DEFAULT_EPS = NoiseSettings().eps
VARIANCE_FLOOR = 1e-8


@dataclass(frozen=True)
class RandomWeightNoise:
    """Gaussian noise on every weight tensor, drawn anew at every inner step.

    Attributes
    ----------
    eps : float
        Standard deviation; with ``relative`` it is ε √(mean(w²) + 1e-8) per tensor. The paper's grid is 5e-4 to 1e-2.

    Raises
    ------
    ValueError
        ``eps`` is negative.
    """

    eps: float = DEFAULT_EPS
    relative: bool = True

    def __post_init__(self) -> None:
        _check(self.eps)

    def deviation(self, weight: Tensor) -> Tensor:
        """Standard deviation (R, 1, …) for stacked replicates (R, …)."""
        if not self.relative:
            return torch.full_like(weight[:1], self.eps)
        squares, axes = weight.detach().square(), tuple(range(1, weight.ndim))
        return self.eps * ((squares.mean(axes, keepdim=True) if axes else squares) + VARIANCE_FLOOR).sqrt()

    def draw(self, numbers: Mapping[str, Tensor], gens: Sequence[torch.Generator]) -> Numbers:
        """Perturbed weights (R, …) of stacked replicates, each from a generator of its own."""
        if self.eps == 0:
            return dict(numbers)
        return {
            name: weight
            + self.deviation(weight)
            * torch.stack([torch.randn(weight.shape[1:], generator=gen, dtype=weight.dtype) for gen in gens]).to(weight.device)
            for name, weight in numbers.items()
        }


@dataclass(frozen=True)
class AdversarialWeightNoise:
    """Weights moved uphill on the meta-loss before each meta-step, and held there over its window.

    Attributes
    ----------
    eps : float
        Length of a step relative to the tensor's norm: ψ ← ψ + ε ‖w‖ ∇/‖∇‖ per tensor (Eq. 6). The paper's grid is 1e-4, 1e-3.
    steps : int
        Steps of ascent, A; each costs a window more.
    mode : {"normalize", "clip"}
        ``clip`` is the official code's: ψ ← ψ + ∇ · min(1, ε ‖w‖/‖∇‖), which leaves small gradients as they are.

    Raises
    ------
    ValueError
        ``eps`` is negative, ``steps`` less than 1, or the mode unknown.
    """

    eps: float = DEFAULT_EPS
    steps: int = 1
    mode: Ascent = "normalize"

    def __post_init__(self) -> None:
        _check(self.eps)
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, not {self.steps}")
        if self.mode not in ("normalize", "clip"):
            raise ValueError(f"there is no mode {self.mode}; choose from normalize, clip")

    def ascend(self, weight: Tensor, gradient: Tensor) -> Tensor:
        """One step for stacked replicates (R, …): what is added to ψ."""
        radius = self.eps * tensor_norm(weight)
        length = tensor_norm(gradient)
        safe = torch.where(length > 0, length, torch.ones_like(length))
        factor = radius / safe
        return gradient * (factor if self.mode == "normalize" else factor.clamp(max=1.0))

    def find(self, numbers: Mapping[str, Tensor], gradient: Callable[[Numbers], Numbers]) -> Numbers:
        """Return the shift ψ (R, …) that leads from weights (R, …), by name, to the adversarial ones.

        ``gradient`` returns that of the meta-loss at given weights.
        """
        shift = {name: torch.zeros_like(weight) for name, weight in numbers.items()}
        if self.eps == 0:
            return shift
        for _ in range(self.steps):
            ascent_gradient = gradient({name: weight.detach() + shift[name] for name, weight in numbers.items()})
            shift = {name: value + self.ascend(numbers[name].detach(), ascent_gradient[name]) for name, value in shift.items()}
        return shift


Perturbation = RandomWeightNoise | AdversarialWeightNoise


def perturbation(kind: NoiseKind, eps: float) -> Perturbation | None:
    """Return the noise of a kind with its defaults but for its size; nothing for the kind ``none``."""
    kinds: dict[str, type[Perturbation]] = {"random": RandomWeightNoise, "adversarial": AdversarialWeightNoise}
    return kinds[kind](eps) if kind in kinds else None


def tensor_norm(values: Tensor) -> Tensor:
    """Frobenius norm of every replicate's tensor: (R, 1, …) for (R, …)."""
    axes = tuple(range(1, values.ndim))
    return values.square().sum(axes, keepdim=True).sqrt() if axes else values.abs()


def _check(eps: float) -> None:
    if not eps >= 0:
        raise ValueError(f"eps must not be negative, not {eps}")
