"""What the paper combines sparsity with: weight averaging under masks, and distillation from a robust and a standard teacher.

The authors released no code for either. The definitions are those of T. Chen et al., *Robust Overfitting May Be Mitigated by
Properly Learned Smoothening*, ICLR 2021.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from atlas.methods.sparse_robust.masks import check_masks
from atlas.nn.examples import require_numbers
from atlas.nn.modes import mode_of


@contextmanager
def _plain_means(norms: Iterable[_BatchNorm]) -> Iterator[None]:
    """While the block runs, running statistics are plain means over batches, begun anew; each keeps its momentum."""
    momenta = [(module, module.momentum) for module in norms]
    try:
        for module, _ in momenta:
            module.reset_running_stats()
            module.momentum = None
        yield
    finally:
        for module, momentum in momenta:
            module.momentum = momentum


class WeightAverage:
    """Running mean of a model's parameters, one snapshot per call of :meth:`update`: θ̄ ← (k·θ̄ + θ) / (k + 1).

    Means of weights of less than single precision are kept in single precision.

    Parameters
    ----------
    support : {"current", "frozen"}, optional
        What to do where a dynamic topology has moved, since the average exists wherever any snapshot did: restrict it to the
        masks of the latest snapshot, or insist that they never change. Without masks nothing needs to be said.
    """

    def __init__(self, support: Literal["current", "frozen"] | None = None) -> None:
        if support not in (None, "current", "frozen"):
            raise ValueError(f"support must be current or frozen, not {support!r}")
        self.support = support
        self.count = 0
        self.average: dict[str, Tensor] = {}
        self.masks: dict[str, Tensor] = {}

    @torch.no_grad()
    def update(self, model: nn.Module, masks: Mapping[str, Tensor] | None = None) -> None:
        """Add the model as it is now; masks are by parameter name and of the parameters' shapes.

        Raises
        ------
        ValueError
            There are masks and ``support`` was not chosen, or it is ``frozen`` and they changed.
        """
        new = {} if masks is None else check_masks(model, masks)
        if new and self.support is None:
            raise ValueError("an average of sparse networks has the union of their weights: choose support current or frozen")
        changed = new.keys() != self.masks.keys() or any(
            not torch.equal(mask, self.masks[name].to(mask.device)) for name, mask in new.items()
        )
        if self.support == "frozen" and self.count and changed:
            raise ValueError("the topology changed while it was averaged: freeze it before, or choose support current")
        self.masks = new
        for name, parameter in model.named_parameters():
            if self.count:
                before = self.average[name].to(parameter.device)  # a restored state's may be on the CPU
                self.average[name] = before.mul_(self.count).add_(parameter).div_(self.count + 1)
            else:
                self.average[name] = parameter.detach().to(torch.promote_types(parameter.dtype, torch.float32), copy=True)
        self.count += 1

    @torch.no_grad()
    def apply_to(self, model: nn.Module, batches: Iterable[Tensor] = ()) -> nn.Module:
        """Give the model the average, masked, and statistics of batch normalisation estimated anew from inputs (batch, …).

        Parameters
        ----------
        batches : iterable of Tensor
            Inputs to estimate the statistics on, as a plain mean over batches; with none, they are left alone.
        """
        if not self.count:
            raise RuntimeError("there is no average yet: call update(model) first")
        for name, parameter in model.named_parameters():
            parameter.copy_(self.average[name] * self.masks[name] if name in self.masks else self.average[name])
        inputs = list(batches)
        norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
        if inputs and norms:
            with mode_of(model, "train"), _plain_means(norms):
                for x in inputs:
                    model(x)
        return model

    def state_dict(self) -> dict[str, Any]:
        """Return the average, its count and its masks."""
        return {"count": self.count, "average": _cloned(self.average), "masks": _cloned(self.masks)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the average of a state."""
        self.count, self.average, self.masks = int(state["count"]), _cloned(state["average"]), _cloned(state["masks"])


def _cloned(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in tensors.items()}


def robust_distillation(
    logits: Tensor,
    labels: Tensor,
    robust_logits: Tensor,
    standard_logits: Tensor,
    temperature: float = 2.0,
    weights: tuple[float, float, float] = (0.5, 0.25, 0.25),
) -> Tensor:
    """λ₁·CE + λ₂·KL(robust teacher ‖ student) + λ₃·KL(standard teacher ‖ student), all on the same adversarial inputs.

    The divergences are at ``temperature`` T and multiplied by T², which keeps their gradients' scale.

    Parameters
    ----------
    logits, robust_logits, standard_logits : Tensor
        (batch, classes), of the student and of a robustly and a standardly trained teacher.
    labels : Tensor
        (batch,) class indices.

    Raises
    ------
    ValueError
        The temperature is not positive and finite.
    """
    require_numbers(temperature=temperature)
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be positive and finite, not {temperature}")
    student = functional.log_softmax(logits / temperature, 1)

    def divergence(teacher: Tensor) -> Tensor:
        target = functional.log_softmax(teacher.detach() / temperature, 1)
        return temperature**2 * functional.kl_div(student, target, reduction="batchmean", log_target=True)

    base = functional.cross_entropy(logits, labels)
    return weights[0] * base + weights[1] * divergence(robust_logits) + weights[2] * divergence(standard_logits)
