"""Two of the terms with their gradients in closed form, for fewer passes over weights and attention maps.

Autograd forms one matrix of the weight's size for every matrix-vector product, and adds them up. Here the gradient of a weight is
one product of two thin matrices, and that of the maps of an image one product with a heads × heads matrix. Where gradients of
gradients are wanted, the terms are computed as they are written down.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

Formula = Callable[..., Tensor]


def _again(formula: Formula, inputs: tuple[Tensor, ...], upstream: Tensor) -> Tensor:
    """The gradient in the first input by autograd, with a graph of its own."""
    return torch.autograd.grad(formula(*inputs), inputs[0], upstream, create_graph=True)[0]


class HeadCosine(torch.autograd.Function):
    """Mean cosine between the flattened maps (batch, heads, n) of an image's heads, over heads and batch: a scalar.

    With the Gram matrix G of an image's maps and s = 1 / length of each, it is sᵀ G s / heads²; its gradient is C·maps with
    C = 2 (s sᵀ − diag(s³ ∘ G s)) / heads². A map shorter than ``eps`` is divided by ``eps``, a constant.
    """

    @staticmethod
    def forward(ctx: Any, maps: Tensor, eps: float, formula: Formula) -> Tensor:  # type: ignore[override]
        """Keep the maps, their Gram matrices and lengths."""
        gram = maps @ maps.mT
        lengths = gram.diagonal(dim1=-2, dim2=-1).sqrt()
        inverse = 1 / lengths.clamp_min(eps)
        ctx.formula = formula
        ctx.save_for_backward(maps, gram, inverse, lengths > eps)
        return (inverse[..., None] * gram * inverse[..., None, :]).mean((-2, -1)).mean()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        """One product with the maps."""
        maps, gram, inverse, long = ctx.saved_tensors
        if torch.is_grad_enabled():
            return _again(ctx.formula, (maps,), upstream), None, None
        similar = (gram @ inverse[..., None])[..., 0]
        mixing = inverse[..., None] * inverse[..., None, :] - torch.diag_embed(long * inverse**3 * similar)
        return (upstream * 2 / (len(maps) * maps.shape[1] ** 2) * mixing) @ maps, None, None


class PowerCondition(torch.autograd.Function):
    """(λ_max − λ_min)² of W Wᵀ by one power step and a Rayleigh quotient each; see :func:`.terms.cond_orth`.

    With start vectors p and q, v₁ = W Wᵀ p and ρ₁ = |Wᵀ v₁|² / |v₁|² stand for λ_max, v₂ = W Wᵀ q − ρ₁ q and
    ρ₂ = |Wᵀ v₂|² / |v₂|² − ρ₁ for λ_min − λ_max. Where they can, both vectors go through a product with W together, so that W is
    read four times forward and twice backward; its gradient is a product of matrices (out, 6) and (6, in). The vectors are
    divided by |v₁| and |W Wᵀ q|, which no quotient sees, against underflow. The last product is with v₂ itself: for nearly
    orthogonal rows it is a small difference, which two differences, of v₂ and of Wᵀ v₂, would not agree on.

    ``weight`` is (matrices, out, in), ``probes`` (2, matrices, out); the result is (matrices,).
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, probes: Tensor, formula: Formula) -> Tensor:  # type: ignore[override]
        """Keep the vectors, not their outer products."""
        start = probes.transpose(0, 1).contiguous()  # (matrices, 2, out): products with few rows are faster than with few columns
        below = start @ weight
        above = below @ weight.mT
        scale = _inverse(torch.linalg.vector_norm(above, dim=-1))
        first = above[:, 0] * scale[:, :1]
        width = (first[:, None] @ weight)[:, 0]
        length = first.square().sum(-1)
        largest = width.square().sum(-1) * _inverse(length)
        second = (above[:, 1] - largest[:, None] * start[:, 1]) * scale[:, 1:]
        height = (second[:, None] @ weight)[:, 0]
        size = second.square().sum(-1)
        found = (height.square().sum(-1) - largest * size) * _inverse(size)
        ctx.formula = formula
        ctx.save_for_backward(weight, start, below, first, width, largest, length, second, height, found, size, scale)
        return found.square()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        """Gradients of both vectors, then one product of thin matrices."""
        weight, start, below, first, width, largest, length, second, height, found, size, scale = ctx.saved_tensors
        if torch.is_grad_enabled():
            return _again(ctx.formula, (weight, start.transpose(0, 1)), upstream), None, None
        inverse = torch.stack((_inverse(length), _inverse(size)), 1)[..., None]  # (matrices, 2, 1)
        vectors, images = torch.stack((first, second), 1), torch.stack((width, height), 1) * inverse
        # gradients of the two quotients in their vectors, whose own values are ρ₁ and ρ₂ + ρ₁
        whole = torch.stack((largest, found + largest), 1)[..., None]
        slopes = 2 * (images @ weight.mT - whole * inverse * vectors) * scale[..., None]
        outer = 2 * found * upstream
        shift = -outer * ((size > 0).to(weight) + (slopes[:, 1] * start[:, 1]).sum(-1))  # in ρ₁
        each = torch.stack((shift, outer), 1)[..., None]
        onward = each * slopes
        rows = torch.cat((2 * each * vectors, onward, start), 1)
        columns = torch.cat((images, below, onward @ weight), 1)
        return rows.mT @ columns, None, None


def _inverse(values: Tensor) -> Tensor:
    """1 / values, and 0 for 0."""
    return torch.where(values > 0, 1 / torch.where(values > 0, values, 1), 0)


def head_cosine(maps: Tensor, eps: float, formula: Formula) -> Tensor:
    """:class:`HeadCosine` of maps (batch, heads, n); ``formula`` computes the same from maps, and is differentiable twice."""
    return cast(Tensor, HeadCosine.apply(maps, eps, formula))


def power_condition(weight: Tensor, probes: Tensor, formula: Formula) -> Tensor:
    """:class:`PowerCondition` of (…, out, in) and probes (2, …, out); ``formula`` computes the same of both."""
    lead = weight.shape[:-2]
    flat = weight.reshape(-1, *weight.shape[-2:])
    value = PowerCondition.apply(flat, probes.reshape(2, -1, probes.shape[-1]), formula)
    return cast(Tensor, value).reshape(lead)
