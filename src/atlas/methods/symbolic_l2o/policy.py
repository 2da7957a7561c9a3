"""The policy that runs an update rule: u_t = α f(z_t, z_{t−1}, …), with the features z and their history as its state."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from atlas.l2o import Features, Layout, Policy, State
from atlas.l2o.policies import described, positive
from atlas.methods.symbolic_l2o.optimizer import SymbolicOptimizer
from atlas.methods.symbolic_l2o.rules import Rule
from atlas.methods.symbolic_l2o.settings import ALPHA, RuleSettings

DEFAULT = RuleSettings()


class SymbolicPolicy(Policy):
    """A rule as a policy: features and their history are state, the rule's numbers are what meta-training changes.

    Parameters
    ----------
    rule : Rule
        f; shared, not copied.
    lr : float
        α.
    betas : tuple of float
        Decay of the moments.
    clamp : float, optional
        Bound on |f|; what is not finite becomes 0. ``None`` leaves f as it is.

    Raises
    ------
    ValueError
        ``lr`` or ``clamp`` is not positive, a β is outside [0, 1).
    """

    coordinatewise = True

    def __init__(
        self,
        rule: Rule,
        lr: float = ALPHA,
        betas: tuple[float, float] = DEFAULT.betas,
        clamp: float | None = DEFAULT.clamp,
    ) -> None:
        super().__init__()
        self.rule = rule
        self.lr = positive("lr", lr)
        self.clamp = None if clamp is None else float(positive("clamp", clamp))
        self.inputs = Features(rule.features, betas)

    def describe(self) -> str:
        """The rule with its present numbers, and what it is fed."""
        own = {"features": list(self.rule.features), "lags": self.rule.lags, "betas": self.inputs.betas}
        return described(self, {"rule": self.rule.expression.simplify(), **own})

    def optimizer(self, params: Any) -> torch.optim.Optimizer:
        """The rule's equation as an optimizer, which keeps no more state than the equation uses."""
        return SymbolicOptimizer(params, self.rule, float(self.lr), betas=self.inputs.betas, clamp=self.clamp)

    def init_state(self, theta: Tensor, layout: Layout | None = None) -> State:
        """Moments (instances, parameters) and history (instances, lags, features, parameters), all at zero."""
        shape = (*theta.shape[:-1], self.rule.lags, len(self.rule.features), theta.shape[-1])
        return {"features": self.inputs.init_state(theta), "history": theta.new_zeros(shape)}

    def step(self, g: Tensor, state: State) -> tuple[Tensor, State]:
        """Return α f, bounded by the clamp, (instances, parameters), and the new state."""
        state = self.observe(g, state)
        raw = self.rule(state["history"])
        if self.clamp is not None:
            raw = torch.nan_to_num(raw, nan=0.0, posinf=0.0, neginf=0.0).clamp(-self.clamp, self.clamp)
        return self.lr * raw, state

    def observe(self, g: Tensor, state: State) -> State:
        """Moments advance with gradients (instances, parameters), and the features join the history."""
        z, features = self.inputs.step(g, state["features"])
        newest = z.transpose(-1, -2).unsqueeze(-3)
        history = torch.cat([newest, state["history"][..., :-1, :, :]], dim=-3)
        return {"features": features, "history": history}
