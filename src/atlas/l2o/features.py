"""Per-coordinate features of a gradient stream, the input of learned optimizers.

RNNprop (Lv et al., ICML 2017) feeds m̃ and g̃; *Symbolic Learning to Optimize* (Zheng et al., ICLR 2022) adds others.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from atlas.l2o.policies import counter, decays
from atlas.l2o.state import State
from atlas.nn.kinds import require_sequence

NORM_EPS = 1e-12
POWER_EPS = 1e-8
TIME_SCALE = 1000.0
FEATURES = ("m", "g", "n", "mom", "mhat", "d", "grad", "ema0.5", "ema0.9", "ema0.99", "p2", "p2.5", "p3", "time")
EMA = re.compile(r"ema(\d*\.?\d+)")
POWER = re.compile(r"p(\d+\.?\d*)")


class Features:
    """Named features of the gradients seen so far, at step s (from 1).

    With m ← β₁m + (1−β₁)g, v ← β₂v + (1−β₂)g², m̂ = m/(1−β₁ˢ), v̂ = v/(1−β₂ˢ) and d = √v̂ + 1e-12:

    ========= =================================================================================
    ``m``     m̃ = m̂/d
    ``g``     g̃ = g/d
    ``n``     m̂/(v̂₃^⅓ + 1e-8), where v₃ is the mean of |g|³ with β₂, v̂₃ bias-corrected
    ``mom``   m
    ``mhat``  m̂
    ``d``     √v̂
    ``grad``  g
    ``emaβ``  exponential mean of g with β (``ema0.5``), not bias-corrected
    ``pP``    m/(v̂_P^{1/P} + 1e-8) (``p2.5``): v̂_P bias-corrected, m not
    ``time``  s/1000
    ========= =================================================================================

    Parameters
    ----------
    names : sequence of str
        In the order of the last axis.
    betas : tuple of float
        (β₁, β₂), each in [0, 1).

    Raises
    ------
    ValueError
        A name is not known (the known ones are listed), none is given, or a β is outside [0, 1).
    """

    def __init__(self, names: Sequence[str] = ("m", "g"), betas: tuple[float, float] = (0.95, 0.95)) -> None:
        require_sequence("a sequence of names of features", features=names)
        for name in names:
            if name not in FEATURES and not (EMA.fullmatch(name) and float(name[3:]) < 1) and not POWER.fullmatch(name):
                raise ValueError(f"there is no feature {name}; choose from {', '.join(FEATURES)}")
        if not names:
            raise ValueError("name at least one feature")
        self.names = tuple(names)
        self.betas = decays("betas", betas)
        self.means = sorted({float(name[3:]) for name in names if EMA.fullmatch(name)})
        powers = {3.0 if name == "n" else float(name[1:]) for name in names if name == "n" or POWER.fullmatch(name)}
        self.powers = sorted(powers)

    def __len__(self) -> int:
        return len(self.names)

    def init_state(self, theta: Tensor) -> State:
        """Moments (instances, parameters) at zero, and the step counter."""
        zero = torch.zeros_like(theta)
        return {
            "step": counter(theta),
            "m": zero,
            "v": zero,
            **{f"ema{beta:g}": zero for beta in self.means},
            **{f"v{power:g}": zero for power in self.powers},
        }

    def step(self, g: Tensor, state: State) -> tuple[Tensor, State]:
        """Return ((instances, parameters, features), new state) for a gradient of (instances, parameters)."""
        beta1, beta2 = self.betas
        new = {
            "step": state["step"] + 1,
            "m": beta1 * state["m"] + (1 - beta1) * g,
            "v": beta2 * state["v"] + (1 - beta2) * g.square(),
            **{f"ema{beta:g}": beta * state[f"ema{beta:g}"] + (1 - beta) * g for beta in self.means},
            **{f"v{p:g}": beta2 * state[f"v{p:g}"] + (1 - beta2) * g.abs().pow(p) for p in self.powers},
        }
        return torch.stack(self._values(g, new), dim=-1), new

    def _values(self, g: Tensor, state: State) -> list[Tensor]:
        beta1, beta2 = self.betas
        step = state["step"]
        second_bias = 1 - beta2**step
        mhat = state["m"] / (1 - beta1**step)
        deviation = (state["v"] / second_bias).sqrt()
        normaliser = deviation + NORM_EPS

        def power_mean(power: float) -> Tensor:
            return (state[f"v{power:g}"] / second_bias).pow(1 / power) + POWER_EPS

        values = []
        for name in self.names:
            if name == "m":
                value = mhat / normaliser
            elif name == "g":
                value = g / normaliser
            elif name == "n":
                value = mhat / power_mean(3.0)
            elif name == "time":
                value = (step / TIME_SCALE).expand_as(g)
            elif EMA.fullmatch(name):
                value = state[f"ema{float(name[3:]):g}"]
            elif POWER.fullmatch(name):
                value = state["m"] / power_mean(float(name[1:]))
            else:
                value = {"mom": state["m"], "mhat": mhat, "d": deviation, "grad": g}[name]
            values.append(value)
        return values
