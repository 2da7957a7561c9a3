"""The terms of SinNeRF's objective, and their weights (paper, Sec. 3; official code for what the paper leaves open)."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class LossWeights:
    """Weights of the terms; the defaults are the first stage of the released configuration without its semantic term.

    Attributes
    ----------
    rgb : float
        Colours of reference rays and of the reference patch.
    depth : float
        Depths of the same, and of rays of the pool of warped views.
    side : float
        Depths of the unseen patch, where the reference warps to; the released code writes it λ_p·λ_d.
    smooth : float
        Edge-aware smoothness of the depth of both patches.
    vit : float
        Distance of the frozen encoder's features.
    adv : float
        Adversarial term of the patch discriminator.
    rgb_warp : float
        Colours of warped rays, which the official code prepares and never uses.
    cycle : float
        Depth of the unseen patch, warped back, must not stand in front of the reference's surfaces.
    consistency : float
        DietNeRF's 1 − cos of the encoder's features of a whole, coarse unseen view.
    ray_termination : float
        DS-NeRF's own depth loss: the cross-entropy of the weights with a normal around the depth.

    Raises
    ------
    ValueError
        A weight is negative or not finite.
    """

    rgb: float = 1.0
    depth: float = 8.0
    side: float = 8.0
    smooth: float = 0.0
    vit: float = 0.0
    adv: float = 0.0
    rgb_warp: float = 0.0
    cycle: float = 0.0
    consistency: float = 0.0
    ray_termination: float = 0.0

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if not math.isfinite(value) or value < 0:
                raise ValueError(f"the weight {one.name} must be finite and not negative, not {value}")

    @property
    def need_unseen_patch(self) -> bool:
        """Whether a term looks at a patch of an unseen pose."""
        return any((self.side, self.smooth, self.vit, self.adv, self.cycle))

    @property
    def need_encoder(self) -> bool:
        """Whether a term needs the frozen encoder."""
        return bool(self.vit or self.consistency)

    @property
    def need_depth(self) -> bool:
        """Whether a term needs the reference's depth."""
        return any((self.depth, self.side, self.rgb_warp, self.cycle, self.ray_termination))


class Stage(NamedTuple):
    """A part of the training: number of steps, stride of the patches in pixels, learning rate, weights."""

    steps: int
    stride: int
    lr: float
    weights: LossWeights


def masked_smooth_l1(predicted: Tensor, target: Tensor, mask: Tensor | None = None, beta: float = 1.0) -> Tensor:
    """Mean smooth-L1 distance per ray over the rays of a mask; 0, with a gradient of 0, if there is none."""
    if predicted.shape != target.shape:
        raise ValueError(f"predictions {tuple(predicted.shape)} and targets {tuple(target.shape)} must have one shape")
    if mask is None:
        mask = torch.ones_like(predicted, dtype=torch.bool)
    zero = torch.zeros_like(predicted)
    loss = functional.smooth_l1_loss(
        torch.where(mask, predicted, zero), torch.where(mask, target, zero), beta=beta, reduction="sum"
    )
    return loss / mask.sum().clamp(min=1)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over a mask; 0 if it is empty."""
    return torch.where(mask, values, torch.zeros_like(values)).sum() / mask.sum().clamp(min=1)


def smoothness(depth: Tensor, image: Tensor, order: int = 1) -> Tensor:
    """Edge-aware smoothness: mean |∂x D|·exp(−mean_c |∂x I|) + the same along y, by forward differences.

    Parameters
    ----------
    depth : Tensor
        (…, h, w): depth, or rather inverse depth, for which the term was made.
    image : Tensor
        (…, 3, h, w) guide, an image for every depth map.
    order : {1, 2}
        Of the differences of ``depth``.

    Raises
    ------
    ValueError
        ``order`` is neither 1 nor 2, the patch is too small for it, or the shapes do not agree: nothing is broadcast.
    """
    if image.ndim < 3 or (*image.shape[:-3], *image.shape[-2:]) != tuple(depth.shape):
        raise ValueError(f"depth (…, h, w) and image (…, 3, h, w) do not agree: {tuple(depth.shape)} and {tuple(image.shape)}")
    if order not in (1, 2) or min(depth.shape[-2:]) <= order:
        raise ValueError(f"differences of order {order} of {tuple(depth.shape[-2:])} pixels cannot be taken")
    total = depth.new_zeros(())
    for axis in (-1, -2):
        slope, edge = depth.diff(dim=axis), image.diff(dim=axis).abs().mean(dim=-3)
        if order == 2:
            slope, edge = slope.diff(dim=axis), edge.narrow(axis, 0, edge.shape[axis] - 1)
        total = total + (slope.abs() * torch.exp(-edge)).mean()
    return total


def ray_termination(weights: Tensor, t: Tensor, depth: Tensor, mask: Tensor, std: float, deltas: Tensor) -> Tensor:
    """DS-NeRF's depth loss (Deng et al., CVPR 2022, Eq. 6): −Σ_k log(w_k)·exp(−(t_k − Z)²/2s²)·Δ_k, mean over the rays of a mask.

    Parameters
    ----------
    weights, t, deltas : Tensor
        (n, samples) weights, parameters and intervals.
    depth : Tensor
        (n) depths Z.
    std : float
        s, in scene units.
    """
    kernel = torch.exp(-((t - depth.unsqueeze(-1)) ** 2) / (2 * std**2))
    return masked_mean(-(torch.log(weights + 1e-5) * kernel * deltas).sum(-1), mask)


def cosine_distance(first: Tensor, second: Tensor) -> Tensor:
    """Mean 1 − cos of feature vectors (b, d)."""
    return (1 - functional.cosine_similarity(first, second, dim=-1)).mean()
