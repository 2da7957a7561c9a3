"""Constants of the controller: scale-free ones that anneal the budget, and those of the authors' code."""

from __future__ import annotations

from dataclasses import dataclass, replace

from atlas.methods.uvc.costs import Cost


@dataclass(frozen=True)
class Preset:
    """How fast the controller's variables move.

    Attributes
    ----------
    normalised : bool
        Counts as shares of what a block has, scores relative to their mean, gates by one scalar each.
    cost : {"physical", "paper"}
        What R counts by default.
    count_lr, dual_lr, price_lr : float
        Of s and r; of y and p; of z.
    damping : float
        ρ: the multiplier that acts on the primal variables is max(0, z + ρ (R − B_t)).
    gate_lr, gate_momentum, gate_weight_decay : float
        Of the gates' own momentum steps.
    gate_resource_weight : float
        Weight of ∂R in the gates' gradient.
    gate_interval : int
        Steps whose gradients make one gate step.
    resource_window : float, optional
        ∂R counts only while \\|R − B\\| is at most this, as in the authors' code, where it stops pruning from ever starting
        for B < 0.5 without gates; off in both presets.
    """

    normalised: bool
    cost: Cost
    count_lr: float
    dual_lr: float
    price_lr: float
    damping: float = 0.0
    gate_lr: float = 0.1
    gate_momentum: float = 0.9
    gate_weight_decay: float = 0.0
    gate_resource_weight: float = 1.0
    gate_interval: int = 1
    resource_window: float | None = None

    def paced(self, pace: float) -> Preset:
        """Return the same preset with all learning rates multiplied by ``pace``, above 0."""
        if not pace > 0:
            raise ValueError(f"pace must be above 0, not {pace}")
        rates = ("count_lr", "dual_lr", "price_lr", "gate_lr")
        return replace(self, **{name: pace * getattr(self, name) for name in rates})


PRESETS = {
    "normalised": Preset(normalised=True, cost="physical", count_lr=0.02, dual_lr=0.005, price_lr=0.2, damping=10.0),
    "reference": Preset(
        normalised=False,
        cost="paper",
        count_lr=0.02,
        dual_lr=1e-4,
        price_lr=1.0,
        gate_weight_decay=1e-4,
        gate_resource_weight=5e-4,
        gate_interval=50,
    ),
}
