"""Optimizers that people wrote, as policies: baselines, teachers and pool members alike.

``g`` is the gradient, ``lr`` the step size η; what is stated is the update that is added. ε stands inside or outside the root
exactly as written.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from atlas.l2o.policies import Layout, Policy, counter, decay, decays, described, positive
from atlas.l2o.settings import AdaGradSettings, AdamSettings, MomentumSettings, RMSpropSettings
from atlas.l2o.state import State

MOMENTUM, ADAM, RMSPROP, ADAGRAD = MomentumSettings(), AdamSettings(), RMSpropSettings(), AdaGradSettings()


class Analytic(Policy):
    """Base of analytic optimizers: ``slots`` of zeros per coordinate, a counter, and a direction that is descended.

    Parameters
    ----------
    lr : float or Tensor
        Step size η > 0. A tensor of (instances, 1) gives every instance its own, which tunes a whole grid at once.

    Raises
    ------
    ValueError
        ``lr`` is not positive.
    """

    slots: ClassVar[tuple[str, ...]] = ()

    def __init__(self, lr: float | Tensor) -> None:
        super().__init__()
        self.lr = positive("lr", lr)

    def init_state(self, theta: Tensor, layout: Layout | None = None) -> State:
        """Zeros (instances, parameters) for every slot, and a counter of steps."""
        return {"step": counter(theta), **{slot: torch.zeros_like(theta) for slot in self.slots}}

    def step(self, g: Tensor, state: State) -> tuple[Tensor, State]:
        """Return −η times the direction, (instances, parameters), and the new state."""
        new = {**state, "step": state["step"] + 1}
        direction = self.direction(g, new)
        return -self.lr * direction, new

    def direction(self, g: Tensor, state: State) -> Tensor:
        """The direction to descend for gradients ``g``, (instances, parameters) both.

        Replaces the slots of ``state``, whose counter is already at this step (from 1).
        """
        raise NotImplementedError

    def describe(self) -> str:
        """Its kind with its settings (β, ε), which are public attributes."""
        own = {name: value for name, value in vars(self).items() if not name.startswith("_") and name != "training"}
        return described(self, own)

    def extra_repr(self) -> str:
        """The step size, or the shape of several, for printing."""
        return f"lr={self.lr}" if isinstance(self.lr, float) else f"lr={tuple(self.lr.shape)}"  # type: ignore[union-attr]


class SGD(Analytic):
    """Gradient descent: the update is −η g."""

    def direction(self, g: Tensor, state: State) -> Tensor:
        """The gradient itself, (instances, parameters)."""
        return g


class Momentum(Analytic):
    """Gradient descent with momentum (heavy ball): v ← β v + g, and the update is −η v."""

    slots = ("v",)

    def __init__(self, lr: float | Tensor, beta: float = MOMENTUM.beta) -> None:
        super().__init__(lr)
        self.beta = decay("beta", beta)

    def direction(self, g: Tensor, state: State) -> Tensor:
        """The velocity v, (instances, parameters)."""
        state["v"] = self.beta * state["v"] + g
        return state["v"]


class Nesterov(Momentum):
    """Nesterov's accelerated gradient: v ← β v + g, and the update is −η (g + β v)."""

    def direction(self, g: Tensor, state: State) -> Tensor:
        """The gradient plus the decayed velocity, (instances, parameters): where the heavy ball would be next."""
        return g + self.beta * super().direction(g, state)


class Adam(Analytic):
    """Bias-corrected: −η m̂ / (√v̂ + ε). Kingma and Ba, ICLR 2015."""

    slots: ClassVar[tuple[str, ...]] = ("m", "v")

    def __init__(self, lr: float | Tensor, betas: tuple[float, float] = ADAM.betas, eps: float = ADAM.eps) -> None:
        super().__init__(lr)
        self.betas = decays("betas", betas)
        self.eps = eps

    def direction(self, g: Tensor, state: State) -> Tensor:
        """The mean of gradients over their root mean square, m̂ / (√v̂ + ε), (instances, parameters)."""
        first, second = self.corrected(g, state)
        return first / (second.sqrt() + self.eps)

    def corrected(self, g: Tensor, state: State) -> tuple[Tensor, Tensor]:
        """Update both moments with gradients (instances, parameters); return them with their bias corrected."""
        beta1, beta2 = self.betas
        state["m"] = beta1 * state["m"] + (1 - beta1) * g
        state["v"] = beta2 * state["v"] + (1 - beta2) * g.square()
        step = state["step"]
        return state["m"] / (1 - beta1**step), state["v"] / (1 - beta2**step)


class AMSGrad(Adam):
    """Adam with the largest v̂ so far. Reddi et al., ICLR 2018."""

    slots = ("m", "v", "largest")

    def direction(self, g: Tensor, state: State) -> Tensor:
        """The mean of gradients over the largest root mean square so far, m̂ / (√max v̂ + ε), (instances, parameters)."""
        first, second = self.corrected(g, state)
        state["largest"] = torch.maximum(state["largest"], second)
        return first / (state["largest"].sqrt() + self.eps)


class RMSprop(Analytic):
    """RMSprop: v ← ρ v + (1−ρ) g², and the update is −η g / √(v + ε)."""

    slots = ("v",)

    def __init__(self, lr: float | Tensor, rho: float = RMSPROP.rho, eps: float = RMSPROP.eps) -> None:
        super().__init__(lr)
        self.rho, self.eps = decay("rho", rho), eps

    def direction(self, g: Tensor, state: State) -> Tensor:
        """The gradient over its root mean square, (instances, parameters)."""
        state["v"] = self.rho * state["v"] + (1 - self.rho) * g.square()
        return g / (state["v"] + self.eps).sqrt()


class AdaGrad(Analytic):
    """−η g / (√Σ g² + ε). Duchi et al., JMLR 2011."""

    slots = ("sum",)

    def __init__(self, lr: float | Tensor, eps: float = ADAGRAD.eps) -> None:
        super().__init__(lr)
        self.eps = eps

    def direction(self, g: Tensor, state: State) -> Tensor:
        """The gradient over the root of the sum of squares, (instances, parameters)."""
        state["sum"] = state["sum"] + g.square()
        return g / (state["sum"].sqrt() + self.eps)


class PowerSign(Analytic):
    """−η e^{sign g · sign m} g with m an exponential mean of g. Bello et al., ICML 2017."""

    slots = ("m",)

    def __init__(self, lr: float | Tensor, beta: float = MOMENTUM.beta) -> None:
        super().__init__(lr)
        self.beta = decay("beta", beta)

    def agreement(self, g: Tensor, state: State) -> Tensor:
        """Sign g · sign m, (instances, parameters), after m has taken g in."""
        state["m"] = self.beta * state["m"] + (1 - self.beta) * g
        return g.sign() * state["m"].sign()

    def direction(self, g: Tensor, state: State) -> Tensor:
        """The gradient, larger where it agrees with its mean, (instances, parameters)."""
        return self.agreement(g, state).exp() * g


class AddSign(PowerSign):
    """−η (1 + sign g · sign m) g. Bello et al., ICML 2017."""

    def direction(self, g: Tensor, state: State) -> Tensor:
        """The gradient, doubled where it agrees with its mean and dropped where not, (instances, parameters)."""
        return (1 + self.agreement(g, state)) * g


ANALYTIC: dict[str, type[Analytic]] = {
    "sgd": SGD,
    "momentum": Momentum,
    "nesterov": Nesterov,
    "adam": Adam,
    "amsgrad": AMSGrad,
    "rmsprop": RMSprop,
    "adagrad": AdaGrad,
    "powersign": PowerSign,
    "addsign": AddSign,
}


def analytic(name: str, lr: float | Tensor, **options: Any) -> Analytic:
    """Return an analytic optimizer by name. A step size ``lr`` of (instances, 1) gives every instance its own.

    Raises
    ------
    ValueError
        There is none of that name (the known ones are listed), or ``lr`` is not positive.
    """
    if name not in ANALYTIC:
        raise ValueError(f"there is no analytic optimizer {name}; choose from {', '.join(ANALYTIC)}")
    return ANALYTIC[name](lr, **options)
