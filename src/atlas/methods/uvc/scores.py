"""Scores of heads, dims and neurons, and sums over the lowest of them.

Squared norms of what a unit feeds forward: c_{l,h,j} of column h·d + j of ``attn.proj.weight``, C_{l,h} = Σ_j c_{l,h,j}, and
n_{l,j} of column j of ``mlp.fc2.weight``. Queries, keys, values and ``fc1`` are never scored.
"""

from __future__ import annotations

import copy
import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from atlas.methods.uvc.architecture import ViTShape, scored_weights

ROWS = 32
"""Rows of a weight, at most, whose squares are added up one after the other."""
MANY = 4096
"""From so many scores on they are sorted as whole numbers."""


class UnitScores(NamedTuple):
    """How much every unit matters.

    Attributes
    ----------
    dims : Tensor
        (L, H, d), non-negative.
    neurons : Tensor
        (L, M), non-negative.
    blocks : Tensor, optional
        (L,): preference for keeping a block, for example the difference of its gate's logits.
    """

    dims: Tensor
    neurons: Tensor
    blocks: Tensor | None = None


def low(values: Tensor, count: Tensor | float) -> Tensor:
    """Return the sum of the ⌈count⌉ smallest values of the last axis: (…, n) values and (…) counts give (…).

    Raises
    ------
    ValueError
        A count is not from 0 to n (on an accelerator, which is not waited for, its own check of indices says so), or there are
        others than one per row.

    Examples
    --------
    >>> float(low(torch.tensor([3.0, 1.0, 2.0]), 0.2))
    1.0
    """
    return Ranked(values).low(_counts(values, count))


def nxt(values: Tensor, count: Tensor | float) -> Tensor:
    """Return the (⌈count⌉ + 1)-th smallest value of the last axis, or the largest if there are only ⌈count⌉.

    It is the slope of :func:`low` in ``count``; (…, n) values and (…) counts give (…). Errors as :func:`low`.
    """
    return Ranked(values).next(_counts(values, count))


def _counts(values: Tensor, count: Tensor | float) -> Tensor:
    """Counts beside their values (…, n), checked as :func:`low` says."""
    rows, size = tuple(values.shape[:-1]), values.shape[-1]
    counts = torch.as_tensor(count)
    if counts.device.type == "cpu":
        wrong = counts[~((counts >= 0) & (counts.ceil() <= size))]
        if wrong.numel():
            raise ValueError(f"count must be from 0 to {size}, the number of values, not {wrong[0].item():g}")
    if counts.ndim and tuple(counts.shape) != rows:
        raise ValueError(f"count must be one number, or one for each row {rows}, not {tuple(counts.shape)}")
    return counts.to(values.device)


class Ranked:
    """The last axis of (…, n) values sorted once (stable: among equals the lower index comes first), for all questions about it.

    ``exist``, bool like the values, says which are there where blocks differ in size; counts are (…).
    """

    def __init__(self, values: Tensor, exist: Tensor | None = None) -> None:
        keyed = values if exist is None else values.masked_fill(~exist, torch.inf)
        self.total = values.sum(-1)
        self.sorted, self.order = _ranked(keyed) if _as_numbers(values, self.total) else keyed.sort(dim=-1, stable=True)
        self.sums = self.sorted.cumsum(-1)

    def shrunk(self, values: Tensor) -> Ranked:
        """The same order of new values: those of which the lowest were multiplied by a number in [0, 1], row by row."""
        other = copy.copy(self)
        other.sorted = torch.where(self.sorted == torch.inf, self.sorted, values.gather(-1, self.order))
        other.sums, other.total = other.sorted.cumsum(-1), values.sum(-1)
        return other

    def low(self, count: Tensor) -> Tensor:
        """Return the sum of the ⌈count⌉ smallest, (…)."""
        last = self._index(count) - 1
        return torch.where(last >= 0, self._at(self.sums, last.clamp_min(0)), 0)

    def next(self, count: Tensor) -> Tensor:
        """Return the (⌈count⌉ + 1)-th smallest, or the largest, (…)."""
        return self._at(self.sorted, self._index(count).clamp_max(self.sorted.shape[-1] - 1))

    def bottom(self, count: Tensor) -> Tensor:
        """Return which values are the ⌈count⌉ smallest, bool (…, n)."""
        positions = torch.arange(self.sorted.shape[-1], device=self.sorted.device)
        below = positions < self._index(count)[..., None]
        return torch.zeros_like(self.order, dtype=torch.bool).scatter(-1, self.order, below.expand_as(self.order))

    def _index(self, count: Tensor) -> Tensor:
        """How many units a count stands for, none where it is NaN: a step names that when it is done."""
        whole = count.detach().ceil().long() if count.is_floating_point() else count.long()
        return whole.clamp(0, self.sorted.shape[-1])

    @staticmethod
    def _at(values: Tensor, index: Tensor) -> Tensor:
        index = index.expand(values.shape[:-1])
        return values.gather(-1, index[..., None])[..., 0]


def _as_numbers(values: Tensor, total: Tensor) -> bool:
    """Whether values can be sorted as whole numbers, and are enough to gain by it."""
    plain = values.device.type == "cpu" and values.dtype == torch.float32 and not values.requires_grad
    return plain and values.numel() >= MANY and bool(total.isfinite().all())


def _ranked(values: Tensor) -> tuple[Tensor, Tensor]:
    """Sort the last axis of (…, n) values of float32 on a CPU, none of them NaN, and say where they were; stable.

    A value's bits and its place make one whole number. NumPy sorts those by vectors, in less time than torch sorts pairs.
    """
    bits = (values + 0.0).numpy().view(np.int32)  # no −0, which is equal to 0
    keys = _by_size(bits).astype(np.int64) << 32 | np.arange(bits.shape[-1])
    keys.sort(axis=-1)
    ordered = _by_size((keys >> 32).astype(np.int32)).view(np.float32)
    return torch.from_numpy(ordered), torch.from_numpy(keys & 0xFFFFFFFF)


def _by_size(bits: np.ndarray) -> np.ndarray:
    """Bits of float32 to int32 in the order of their values, and back: those of negative numbers count the wrong way."""
    return bits ^ (bits >> 31 & 0x7FFFFFFF)


def stacked(parts: list[Tensor]) -> Tensor:
    """Stack one tensor (…) per block to (L, …), padded with zeros to the largest where blocks differ."""
    if len({part.shape for part in parts}) == 1:
        return torch.stack(parts)
    sizes = [max(lengths) for lengths in zip(*(part.shape for part in parts), strict=True)]
    out = parts[0].new_zeros(len(parts), *sizes)
    for padded, part in zip(out, parts, strict=True):
        padded[tuple(slice(length) for length in part.shape)] = part
    return out


def column_scores(weights: list[Tensor]) -> list[Tensor]:
    """Return the squared norms of the columns of weights (out, in), each (in,), in float32 at least."""
    found = [weight.detach().to(_float(weight)) for weight in weights]
    return [_squared(weight) for weight in found]


def _squared(weight: Tensor) -> Tensor:
    """Squared norms of columns; on a CPU in one pass that leaves no squares behind.

    New memory for the squares costs more than their arithmetic: the system clears every page of it before it is first written.
    Runs of some rows are added up by themselves, so that rounding grows no faster with the number of rows than in torch.
    """
    if weight.device.type != "cpu":
        return weight.square().sum(0)
    runs = weight.numpy().reshape(-1, math.gcd(len(weight), ROWS), weight.shape[1])
    return torch.from_numpy(np.einsum("kij,kij->kj", runs, runs)).sum(0)


def _float(weight: Tensor) -> torch.dtype:
    return torch.float64 if weight.dtype == torch.float64 else torch.float32


@torch.no_grad()
def unit_scores(model: Any, shape: ViTShape | None = None) -> UnitScores:
    """Return the scores of every dim and neuron of a timm VisionTransformer, from its present weights."""
    shape = shape or ViTShape.from_timm(model)
    proj, fc2 = scored_weights(model)
    heads = shape.per_block("heads")
    dims = [score.view(count, -1) for score, count in zip(column_scores(proj), heads, strict=True)]
    return UnitScores(stacked(dims), stacked(column_scores(fc2)))


def relative(scores: UnitScores, shape: ViTShape) -> UnitScores:
    """Scores divided by their mean: of the head for dims, of the layer for neurons. Scale free; a mean of 0 leaves zeros."""
    exist = shape.dims_exist().to(scores.dims.device)
    mean = scores.dims.sum(-1, keepdim=True) / exist.sum(-1, keepdim=True).clamp_min(1)
    count = shape.neurons_exist().to(scores.neurons.device).sum(-1, keepdim=True)
    neurons = scores.neurons / positive(scores.neurons.sum(-1, keepdim=True) / count)
    return UnitScores(scores.dims / positive(mean), neurons, scores.blocks)


def positive(mean: Tensor) -> Tensor:
    """Return the means (…) with 1 in place of 0, to divide by."""
    return torch.where(mean > 0, mean, 1)
