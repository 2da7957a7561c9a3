"""The terms of SinNeRF's objective (paper, Sec. 3; official code for what the paper leaves open)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def masked_smooth_l1(predicted: Tensor, target: Tensor, mask: Tensor | None = None, beta: float = 1.0) -> Tensor:
    """Mean smooth-L1 distance of (n) values over the rays of a mask (n); 0, with a gradient of 0, if there is none."""
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
    """Mean of (n) values over a mask (n); 0 if it is empty."""
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
