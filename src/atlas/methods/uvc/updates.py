"""Pieces of one step of the controller: scaling columns of weights in place, a step inside a box, and what is logged."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from atlas.methods.uvc.architecture import ViTShape

FEW = 128
"""Below one column in so many, reaching for single columns is faster than a pass over all: a column's numbers lie far apart."""
LARGE = 1 << 19
"""Entries of a weight for which that is so: a pass over fewer costs less than finding the columns."""


def multiply_columns(weights: tuple[list[Tensor], list[Tensor]], shape: ViTShape, dims: Tensor, neurons: Tensor) -> None:
    """Multiply columns of ``attn.proj`` by (L, H, d) and columns of ``mlp.fc2`` by (L, M), in place."""
    sizes = zip(*(shape.per_block(name) for name in ("heads", "head_dim", "mlp_dim")), strict=True)
    for layer, (heads, width, size) in enumerate(sizes):
        proj, fc2 = weights[0][layer], weights[1][layer]
        _multiply(proj, dims[layer, :heads, :width].reshape(-1))
        _multiply(fc2, neurons[layer, :size])


def _multiply(weight: Tensor, factors: Tensor) -> None:
    """Multiply columns in place; of a large weight on the CPU only those whose factor is not 1, where they are few."""
    if weight.device.type == "cpu" and weight.numel() >= LARGE:
        chosen = (factors != 1).nonzero()[:, 0]
        if len(chosen) * FEW <= len(factors):
            scaled = weight.index_select(1, chosen).mul_(factors[chosen].to(weight.dtype))
            weight.index_copy_(1, chosen, scaled)
            return
    weight.mul_(factors.to(weight.dtype))


def boxed_step(count: Tensor, gradient: Tensor, top: Tensor, rate: float, unit: Tensor | float) -> None:
    """Descend inside [0, top], in place, by a gradient whose largest entry is clipped to 1.

    Entries that point out of the box do not count for the clipping. What has reached the top comes back when its gradient is
    positive; the authors' code absorbs it there.

    Parameters
    ----------
    count : Tensor
        What moves; (L, 2) or (L, H).
    gradient : Tensor
        In coordinates of size ``unit``.
    top : Tensor
        Upper ends.
    rate : float
        Learning rate of the coordinates.
    """
    outward = ((count <= 0) & (gradient > 0)) | ((count >= top) & (gradient < 0))
    gradient = gradient.masked_fill(outward, 0)
    largest = gradient.abs().max()
    gradient = torch.where(largest > 1, gradient / (largest + 1e-6), gradient)
    count.sub_(rate * unit * gradient).clamp_(min=0)
    count.copy_(torch.minimum(count, top))


@dataclass(frozen=True)
class StepLog:
    """What one step saw; tensors, so that looking is what waits for the device.

    Attributes
    ----------
    step : int
        Steps completed.
    target : float
        The budget B_t in force, which may still be on its way down.
    resource, dual, price : Tensor
        R after the step (with sampled gates), z, and the multiplier ẑ that acted on the primal variables.
    heads, neurons, dims, blocks : Tensor
        Heads, neurons and dims counted as removed, and blocks whose gate says keep.
    """

    step: int
    target: float
    resource: Tensor
    dual: Tensor
    price: Tensor
    heads: Tensor
    neurons: Tensor
    dims: Tensor
    blocks: Tensor

    def values(self) -> dict[str, float]:
        """Return all that was logged but the step as plain numbers, by name; waits for the device."""
        return {name: float(getattr(self, name)) for name in self.__dataclass_fields__ if name != "step"}
