"""Gates over uniform noise: binary concrete relaxation, straight-through, and the augment-REINFORCE-merge pair.

A gate z ∈ {0, 1} has a logit α, with P(z = 1) = σ(α). All forms compare α with logistic noise in logit space, so that one
uniform draw u says what every one of them does. Sources: Maddison et al., ICLR 2017 (concrete); Yin and Zhou, ICLR 2019 (ARM);
the official code of VFDS for the directions of the comparisons.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from atlas.nn.sequences import first_place

EPSILON = 1e-20
"""Keeps the logistic noise finite at u = 0 and u = 1: ∓46.05."""


def check_temperature(temperature: float) -> None:
    """Refuse a temperature that is not positive.

    Raises
    ------
    ValueError
        It is not.
    """
    if not temperature > 0 or not math.isfinite(temperature):
        raise ValueError(f"the temperature must be positive and finite, not {temperature}")


def check_noise(noise: Tensor, shape: tuple[int, ...]) -> None:
    """Refuse uniform noise that does not have the shape (steps, batch, gates), or leaves [0, 1].

    Raises
    ------
    ValueError
        It does.
    """
    if noise.shape != shape:
        raise ValueError(f"noise must have shape {shape} (steps, batch, gates), not {tuple(noise.shape)}")
    wrong = ~((noise >= 0) & (noise <= 1))
    if bool(wrong.any()):
        raise ValueError(f"noise must lie in [0, 1]; {int(wrong.sum())} do not, the first at {list(first_place(wrong))}")


def logistic_noise(u: Tensor) -> Tensor:
    """log(u + ε) − log(1 − u + ε): standard logistic noise from uniform noise of any shape in [0, 1]."""
    return torch.log(u + EPSILON) - torch.log(1 - u + EPSILON)


def relaxed_bernoulli(logits: Tensor, u: Tensor, tau: float) -> Tensor:
    """Binary concrete gates σ((α + logistic(u)) / τ), differentiable in the logits.

    Parameters
    ----------
    logits, u : Tensor
        Logits α (…), and uniform noise in [0, 1] that broadcasts with them.
    tau : float
        Temperature; the gate tends to :func:`bernoulli_hard` as it tends to 0, and is above ½ with probability σ(α) for any.

    Raises
    ------
    ValueError
        The temperature is not positive.
    """
    check_temperature(tau)
    return torch.sigmoid((logits + logistic_noise(u)) / tau)


def bernoulli_hard(logits: Tensor, u: Tensor) -> Tensor:
    """1[u > σ(−α)] of logits and noise (…), the limit of the concrete gate: 0 or 1 in the logits' type, without a gradient."""
    return (logits + logistic_noise(u) > 0).to(logits.dtype)


def bernoulli_st(logits: Tensor, u: Tensor) -> Tensor:
    """1[σ(α) > u] of logits and noise (…) forward, the gradient of σ(α) backward (straight-through)."""
    probability = torch.sigmoid(logits)
    hard = (probability > u).to(logits.dtype)
    return hard + (probability - probability.detach())


def st_concrete(logits: Tensor, u: Tensor, tau: float) -> Tensor:
    """The hard gate of :func:`bernoulli_hard` forward, the gradient of :func:`relaxed_bernoulli` backward, (…)."""
    soft = relaxed_bernoulli(logits, u, tau)
    return bernoulli_hard(logits, u) + (soft - soft.detach())


def arm_pair(logits1: Tensor, logits2: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Two antithetic Bernoulli gates on common noise: b₁ = 1[u < σ(α₁)] and b₂ = 1[u > σ(−α₂)].

    Logits and noise are (…), and so are both gates. For one gate, d/dα E f(b) = E_u[(f(b₂) − f(b₁)) (u − ½)].
    """
    return bernoulli_hard(logits1, 1 - u), bernoulli_hard(logits2, u)


def bernoulli_entropy(logits: Tensor) -> Tensor:
    """Entropy of Bern(σ(α)) in nats of logits (…), elementwise, exact for logits of any size."""
    probability = torch.sigmoid(logits)
    return functional.softplus(logits) - probability * logits


def bernoulli_kl(logits: Tensor, penalty: Tensor) -> Tensor:
    """KL(Bern(σ(α)) ‖ Bern(σ(−penalty))) in nats, elementwise (…): −H + penalty · σ(α) + log(1 + e^{−penalty}).

    With penalty = λ c the linear term is the acquisition cost: the objective of the official code is this divergence without the
    entropy and without the constant.
    """
    return torch.sigmoid(logits) * penalty - bernoulli_entropy(logits) + functional.softplus(-penalty)


def uniform_noise(*shape: int, generator: torch.Generator | None, like: Tensor) -> Tensor:
    """Uniform noise of a shape in [1e−6, 1 − 1e−6], drawn where the generator lives and moved to where ``like`` is."""
    device = like.device if generator is None else generator.device
    drawn = torch.rand(*shape, generator=generator, device=device, dtype=like.dtype)
    return drawn.clamp_(1e-6, 1 - 1e-6).to(like.device)
