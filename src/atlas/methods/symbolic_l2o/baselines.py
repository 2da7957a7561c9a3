"""Momentum with a cosine schedule, the strong hand-made baseline on residual networks."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from atlas.l2o import Layout, Momentum, Policy, State
from atlas.methods.symbolic_l2o.settings import CosineSettings
from atlas.tasks.learned_optimization.competitors import Tuned

DEFAULT = CosineSettings()


class CosineMomentum(Policy):
    """Heavy ball times (1 + cos(π t/T))/2, t steps after the first, 0 from T on."""

    def __init__(self, lr: float | Tensor, beta: float = DEFAULT.beta, steps: int = DEFAULT.steps) -> None:
        super().__init__()
        self.inner = Momentum(lr, beta)
        self.lr, self.steps = self.inner.lr, steps

    def init_state(self, theta: Tensor, layout: Layout | None = None) -> State:
        """The state of the heavy ball, which counts the steps, for ``theta`` (instances, parameters)."""
        return self.inner.init_state(theta, layout)

    def step(self, g: Tensor, state: State) -> tuple[Tensor, State]:
        """The heavy ball's update (instances, parameters), less as time goes on."""
        update, new = self.inner.step(g, state)
        share = (state["step"] / self.steps).clamp(max=1.0)
        return update * (0.5 * (1 + torch.cos(math.pi * share))), new


class TunedCosine(Tuned):
    """Heavy ball with a cosine schedule; while its step size is looked for, the schedule ends where that ends."""

    def optimizer(self, lr: Any, tuning_steps: int | None = None) -> Policy:
        """Make the heavy ball with a schedule of the settings' length, or of the tuning's."""
        return CosineMomentum(lr, self.settings.beta, tuning_steps or self.settings.steps)
