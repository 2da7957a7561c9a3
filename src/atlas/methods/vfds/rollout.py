"""The gated GRU through time, step by step: how gates follow from logits, and the rollout that autograd differentiates.

For t = 0 … T − 1 (the PyTorch GRU cell, and the official code of VFDS for the gates):

    α_t = s (W_s h_{t−1} + b_s),   z_t = gate(α_t + ν_t),   ξ_t = gain · x_t ⊙ z_t,   h_t = GRU(ξ_t, h_{t−1})

where h is the top layer's state, ν the noise in logit space, and the first step's gates are given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Slope = Literal["relaxed", "sigmoid", "none"]


class Layer(NamedTuple):
    """Weights of one GRU layer as PyTorch keeps them: rows are reset, update, new. (3H, D), (3H, H), (3H,), (3H,)."""

    weight_ih: Tensor
    weight_hh: Tensor
    bias_ih: Tensor
    bias_hh: Tensor


@dataclass(frozen=True)
class Gating:
    """How gates follow from logits.

    Attributes
    ----------
    hard : bool
        Gates are 1[α + ν > 0] rather than σ((α + ν) / τ).
    slope : {"relaxed", "sigmoid", "none"}
        Derivative of a gate: of the relaxation at τ, of σ(α), or none.
    temperature, scale : float
        τ, and the factor s of the logits.
    level : float
        Added to α; −logit(threshold) moves the threshold of hard gates without noise.
    gain : float
        Factor of the gated input at the steps that the policy decides (attention's 1 / (1 − threshold)).
    index : Tensor, optional
        (D,) group of every feature; ``None`` if gate j is feature j.
    first : Tensor, optional
        (G,) gates of the first step; ``None`` leaves it to the policy, on a state of zeros.
    append : bool
        Whether the features' gates are inputs beside the values; the plain rollout alone does that.
    learning : int, optional
        Number of sequences of the batch, from the first, through which gradients flow; by default all. The fused rollout spares
        itself the backward pass of the others, and what it leaves out must be detached by whoever asks for it.
    """

    hard: bool
    slope: Slope
    temperature: float = 1.0
    scale: float = 1.0
    level: float = 0.0
    gain: float = 1.0
    index: Tensor | None = None
    first: Tensor | None = None
    append: bool = False
    learning: int | None = None

    @property
    def opaque(self) -> bool:
        """Whether closed gates keep values out entirely: hard gates whose gradient, which needs the values, nobody asks for."""
        return self.hard and self.slope == "none"


def spread(gates: Tensor, gating: Gating) -> Tensor:
    """Give every feature the gate of its group: (…, G) to (…, D)."""
    return gates if gating.index is None else gates[..., gating.index]


def admit(x: Tensor, gates: Tensor, hard: bool) -> Tensor:
    """Gated values, ``x`` and ``gates`` being (…, D); what a hard gate keeps out may be NaN."""
    return torch.where(gates > 0, x, 0) if hard else gates * x


def plain_rollout(
    x: Tensor, offset: Tensor, selector: tuple[Tensor, Tensor], layers: Sequence[Layer], gating: Gating
) -> tuple[Tensor, Tensor, Tensor]:
    """The same as :func:`.recurrence.gated_rollout` of one model, step by step under autograd; differentiable twice.

    Inputs are (T, B, D), the offset (T, B, G); returns hidden states (T, B, H), gates and logits (T, B, G).
    """
    batch, features = x.shape[1], layers[0].weight_hh.shape[-1]
    states = [x.new_zeros(batch, features) for _ in layers]
    hidden, gates, logits = [], [], []
    for step, values in enumerate(x):
        alpha = gating.scale * (states[-1] @ selector[0].T + selector[1])
        if step == 0 and gating.first is not None:
            alpha, z, gain = torch.zeros_like(alpha), gating.first.to(x).expand(batch, -1), 1.0
        else:
            z, gain = gate(alpha, offset[step], gating), gating.gain
        opened = spread(z, gating)
        below = gain * admit(values, opened, gating.opaque)
        below = torch.cat([below, opened], -1) if gating.append else below
        for index, layer in enumerate(layers):
            states[index] = below = gru_cell(below, states[index], layer)
        hidden.append(below)
        gates.append(z)
        logits.append(alpha)
    return torch.stack(hidden), torch.stack(gates), torch.stack(logits)


def gate(alpha: Tensor, offset: Tensor, gating: Gating) -> Tensor:
    """Gates of logits α and noise ν of one shape, differentiable as ``gating`` says."""
    levels = alpha + offset + gating.level
    if not gating.hard:
        return torch.sigmoid(levels / gating.temperature)
    hard = (levels > 0).to(alpha.dtype)
    if gating.slope == "none":
        return hard
    soft = torch.sigmoid(alpha if gating.slope == "sigmoid" else levels / gating.temperature)
    return hard + (soft - soft.detach())


def gru_cell(inputs: Tensor, state: Tensor, layer: Layer) -> Tensor:
    """PyTorch's GRU cell: inputs (B, D), state (B, H) to the next state (B, H)."""
    from_input = inputs @ layer.weight_ih.T + layer.bias_ih
    from_state = state @ layer.weight_hh.T + layer.bias_hh
    reset_i, update_i, new_i = from_input.chunk(3, -1)
    reset_h, update_h, new_h = from_state.chunk(3, -1)
    update = torch.sigmoid(update_i + update_h)
    new = torch.tanh(new_i + torch.sigmoid(reset_i + reset_h) * new_h)
    return new + update * (state - new)


def project(inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Linear layer over all steps as one product: (T, [M,] B, D), ([M,] K, D), ([M,] K) to (T, [M,] B, K)."""
    if inputs.ndim == 3:
        return torch.nn.functional.linear(inputs, weight, bias)
    steps, models, batch, _ = inputs.shape
    flat = inputs.transpose(0, 1).reshape(models, steps * batch, -1)
    return torch.baddbmm(bias.unsqueeze(1), flat, weight.mT).view(models, steps, batch, -1).transpose(0, 1)
