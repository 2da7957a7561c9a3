"""Adam and RMSprop over models side by side: torch's update rules, with each model's gradient clipped by itself.

The optimisers of torch would clip the norm over all models together; and on a CPU their import costs more than a short
training.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from atlas.tasks.feature_acquisition.protocol import Protocol

BETAS = (0.9, 0.999)
ALPHA = 0.99
EPSILON = 1e-8


class StackedOptimizer:
    """Updates a module whose parameters all have a leading dimension of models.

    Parameters
    ----------
    module : nn.Module
        Parameters whose names end in ``static_logits`` follow the protocol's ``logit_learning_rate``.
    """

    def __init__(self, module: nn.Module, protocol: Protocol) -> None:
        named = list(module.named_parameters())
        self.kind, self.clip_norm = protocol.optimizer, protocol.clip_norm
        self.parameters = [parameter for _, parameter in named]
        rates = (protocol.logit_learning_rate, protocol.learning_rate)
        self.rates = [rates[0] if name.endswith("static_logits") else rates[1] for name, _ in named]
        self.first = [torch.zeros_like(parameter) for parameter in self.parameters]
        self.second = [torch.zeros_like(parameter) for parameter in self.parameters]
        self.count = 0

    def join(self, others: Sequence[StackedOptimizer]) -> None:
        """Take up the state of optimisers of parts of the module, one after the other; theirs become views of this one's."""
        self.count = others[0].count
        for mine, name in ((self.first, "first"), (self.second, "second")):
            for index, whole in enumerate(mine):
                end = 0
                for other in others:
                    own = getattr(other, name)
                    begin, end = end, end + len(own[index])
                    whole[begin:end] = own[index]
                    own[index] = whole[begin:end]

    def zero_grad(self) -> None:
        """Forget the gradients of all models of the stack."""
        for parameter in self.parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Clip each model's gradient by its own norm, and take one step with all models."""
        gradients = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in self.parameters]
        if self.clip_norm is not None:
            self._clip(gradients)
        self.count += 1
        for parameter, gradient, first, second, rate in zip(
            self.parameters, gradients, self.first, self.second, self.rates, strict=True
        ):
            if self.kind == "adam":
                first.lerp_(gradient, 1 - BETAS[0])
                second.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
                correction = math.sqrt(1 - BETAS[1] ** self.count)
                scale = (second.sqrt() / correction).add_(EPSILON)
                parameter.addcdiv_(first, scale, value=-rate / (1 - BETAS[0] ** self.count))
            else:
                second.mul_(ALPHA).addcmul_(gradient, gradient, value=1 - ALPHA)
                parameter.addcdiv_(gradient, second.sqrt().add_(EPSILON), value=-rate)

    def _clip(self, gradients: list[Tensor]) -> None:
        assert self.clip_norm is not None
        square = torch.stack([gradient.flatten(1).square().sum(1) for gradient in gradients]).sum(0)
        factor = (self.clip_norm / (square.sqrt() + 1e-6)).clamp(max=1.0)
        for gradient in gradients:
            gradient.mul_(factor.view(-1, *[1] * (gradient.ndim - 1)))

    def state_dict(self) -> dict[str, Any]:
        """Return the moments of all models and the number of steps, as a state to save."""
        return {"first": self.first, "second": self.second, "count": self.count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore moments and step count, in place, from :meth:`state_dict`."""
        for own, saved in ((self.first, state["first"]), (self.second, state["second"])):
            for tensor, value in zip(own, saved, strict=True):
                tensor.copy_(value)
        self.count = state["count"]
