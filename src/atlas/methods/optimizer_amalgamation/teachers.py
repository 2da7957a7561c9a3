"""The pool: analytic optimizers in the smooth variants that the amalgamation differentiates and imitates.

They are not the textbook optimizers of :mod:`atlas.l2o.rules` (those are ``adam``, ``momentum``, …; these ``adam_ema``,
``momentum_ema``, …): moments are plain exponential means, their bias is corrected by constants, ε = 1e-10 stands inside the root,
and signs are hyperbolic tangents. In the steady state ``adam_ema`` makes 0.316 times the step of Adam, and the step size of
``momentum_ema`` is ten times the heavy ball's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor

from atlas.l2o import Analytic, Policy
from atlas.l2o.policies import positive, require_policy
from atlas.l2o.state import State
from atlas.methods.optimizer_amalgamation.settings import ChoiceSettings, PoolName, PoolStepSizes
from atlas.nn.kinds import require_kind, require_sequence

DEFAULT = ChoiceSettings()
BETAS = (0.9, 0.999)
RHO = 0.9
EPS = 1e-10
SMALL = ("adam_ema", "rmsprop_ema")
LARGE = (*SMALL, "sgd_ema", "momentum_ema", "powersign_ema", "addsign_ema")
POOLS: dict[str, tuple[str, ...]] = {"small": SMALL, "large": LARGE}


def first_moment(g: Tensor, state: State, beta: float = BETAS[0]) -> Tensor:
    """Let the mean of gradients take ``g`` in, m ← β₁ m + (1−β₁) g, and return it, (instances, parameters)."""
    state["m"] = beta * state["m"] + (1 - beta) * g
    return state["m"]


def second_moment(g: Tensor, state: State, beta: float = BETAS[1]) -> Tensor:
    """Let the mean of squared gradients take ``g`` in, v ← β₂ v + (1−β₂) g², and return it, (instances, parameters)."""
    state["v"] = beta * state["v"] + (1 - beta) * g.square()
    return state["v"]


class SGDEma(Analytic):
    """Gradient descent: the step is η g."""

    def direction(self, g: Tensor, state: State) -> Tensor:
        """The gradient itself, (instances, parameters)."""
        return g


class MomentumEma(Analytic):
    """Momentum as an exponential mean m of gradients: the step is η m, a tenth of the heavy ball's."""

    slots = ("m",)

    def direction(self, g: Tensor, state: State) -> Tensor:
        """The mean of gradients, (instances, parameters)."""
        return first_moment(g, state)


class RMSpropEma(Analytic):
    """v ← .9 v + .1 g², η g/√(v + ε); ε is 1e-10 unless said otherwise."""

    slots = ("v",)

    def __init__(self, lr: float | Tensor, eps: float = EPS) -> None:
        super().__init__(lr)
        self.eps = float(positive("eps", eps))

    def direction(self, g: Tensor, state: State) -> Tensor:
        """The gradient over its root mean square, (instances, parameters)."""
        return g / (second_moment(g, state, RHO) + self.eps).sqrt()


class AdamEma(Analytic):
    """η m̂/√(v̂ + ε) with m̂ = m/(1−β₁), v̂ = v/(1−β₂) at every step: Adam at the first, and √(1−β₂)/(1−β₁) of it in the end."""

    slots: ClassVar[tuple[str, ...]] = ("m", "v")

    def direction(self, g: Tensor, state: State) -> Tensor:
        """m̂/√(v̂ + ε), (instances, parameters), with both moments divided by their constants."""
        mean, square = first_moment(g, state), second_moment(g, state)
        return mean / (1 - BETAS[0]) / (square / (1 - BETAS[1]) + EPS).sqrt()


class PowerSignEma(Analytic):
    """η exp(tanh(g/r) tanh(m/r)) g with r = √(v + ε)."""

    slots: ClassVar[tuple[str, ...]] = ("m", "v")

    def agreement(self, g: Tensor, state: State) -> Tensor:
        """tanh(g/r) tanh(m/r), a smooth product of signs, (instances, parameters)."""
        mean = first_moment(g, state)
        root = (second_moment(g, state) + EPS).sqrt()
        return (g / root).tanh() * (mean / root).tanh()

    def direction(self, g: Tensor, state: State) -> Tensor:
        """The gradient, larger where it agrees with its mean, (instances, parameters)."""
        return self.agreement(g, state).exp() * g


class AddSignEma(PowerSignEma):
    """η (1 + tanh(g/r) tanh(m/r)) g with r = √(v + ε)."""

    def direction(self, g: Tensor, state: State) -> Tensor:
        """The gradient, doubled where it agrees with its mean, (instances, parameters)."""
        return (1 + self.agreement(g, state)) * g


TEACHERS: dict[str, type[Analytic]] = {
    "sgd_ema": SGDEma,
    "momentum_ema": MomentumEma,
    "rmsprop_ema": RMSpropEma,
    "adam_ema": AdamEma,
    "powersign_ema": PowerSignEma,
    "addsign_ema": AddSignEma,
}
PRESETS = {
    "adam_ema": 0.005,
    "rmsprop_ema": 0.005,
    "sgd_ema": 0.2,
    "momentum_ema": 0.5,
    "powersign_ema": 0.1,
    "addsign_ema": 0.1,
}
"""Step sizes of the official configuration: winners of its grid on the meta-training problem."""
OFFICIAL_CHOICE = {
    "adam_ema": 0.02,
    "rmsprop_ema": 0.005,
    "sgd_ema": 2.0,
    "momentum_ema": 2.0,
    "powersign_ema": 1.0,
    "addsign_ema": 1.0,
}
"""Step sizes with which the official configuration trains choice policies; they differ from the teachers' own."""
OFFICIAL_CHOICE_EPS = 1e-7
"""ε of RMSprop in the official choice policies' pools, which leave it at the class's default; teachers are made with 1e-10."""


def teacher(name: str, lr: float | Tensor | None = None) -> Analytic:
    """Return a teacher by name, with the preset step size if none is given; ``lr`` of (instances, 1) is one for each instance.

    Raises
    ------
    ValueError
        There is none of that name (the known ones are listed), or ``lr`` is not positive.
    """
    if name not in TEACHERS:
        raise ValueError(f"there is no teacher {name}; choose from {', '.join(TEACHERS)}")
    return TEACHERS[name](PRESETS[name] if lr is None else lr)


def make_pool(
    name: PoolName = DEFAULT.pool,
    lrs: Mapping[str, float] | None = None,
    pool_lr: PoolStepSizes = DEFAULT.pool_lr,
) -> list[Policy]:
    """Return the small pool (Adam, RMSprop), or the large one with SGD, Momentum, PowerSign and AddSign too.

    Parameters
    ----------
    lrs : mapping, optional
        Teacher to step size, over the presets.
    pool_lr : {"tuned", "official"}
        One step size per teacher everywhere, as the paper's text says; or the step sizes of the official choice policies, with
        their ε of RMSprop, 1e-7 instead of 1e-10.

    Raises
    ------
    ValueError
        There is no such pool or choice of step sizes, or ``lrs`` names no teacher.
    """
    if name not in POOLS:
        raise ValueError(f"there is no pool {name}; choose from {', '.join(POOLS)}")
    if pool_lr not in ("tuned", "official"):
        raise ValueError(f"there is no pool_lr {pool_lr}; choose from tuned, official")
    if pool_lr == "official":
        return [_official(member) for member in POOLS[name]]
    if lrs is not None:
        require_kind(Mapping, "a mapping of teachers to step sizes", lrs=lrs)
        for member in lrs:
            if member not in TEACHERS:
                raise ValueError(f"there is no teacher {member}; choose from {', '.join(TEACHERS)}")
    chosen = {**PRESETS, **(lrs or {})}
    return [teacher(member, chosen[member]) for member in POOLS[name]]


def _official(name: str) -> Analytic:
    """A member as the official configuration makes it for choice policies."""
    options: dict[str, Any] = {"eps": OFFICIAL_CHOICE_EPS} if name == "rmsprop_ema" else {}
    return TEACHERS[name](OFFICIAL_CHOICE[name], **options)


def check_pool(pool: Sequence[Policy], least: int) -> None:
    """Check that a pool has enough members and that all are frozen.

    Raises
    ------
    TypeError
        It is no sequence, or a member no policy: a name of one above all.
    ValueError
        Fewer members, or one with parameters that would be trained.
    """
    require_sequence("a sequence of policies, such as make_pool('small'),", pool=pool)
    require_policy(**{f"pool[{index}]": member for index, member in enumerate(pool)})
    if len(pool) < least:
        raise ValueError(f"the pool needs at least {least} member{'s' if least > 1 else ''}, not {len(pool)}")
    for member in pool:
        if any(parameter.requires_grad for parameter in member.parameters()):
            raise ValueError(f"{type(member).__name__} has trainable parameters; freeze it first: teacher.requires_grad_(False)")
