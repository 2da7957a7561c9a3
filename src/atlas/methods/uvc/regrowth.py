"""S²ViTE's structured sparse training: heads and neurons are pruned and grown back, by gradients, while a network trains.

T. Chen, Y. Cheng, Z. Gan, L. Yuan, L. Zhang, Z. Wang, *Chasing Sparsity in Vision Transformers: An End-to-End Exploration*,
NeurIPS 2021, arXiv 2106.04533. With A the output of a head before the projection, and L the loss: a head that is kept goes for a
small |Aᵀ ∂L/∂A|, one that is not comes back for a large ‖∂L/∂A‖₁. A neuron goes for small weights, ‖·‖₁ of its row of fc1
and its column of fc2, and comes back for large gradients of these.

What is removed puts out nothing: the values of a head, and the column of fc2 of a neuron, are 0. So a unit that comes back
changes nothing at first, and learns from then on, since what reads or feeds it has kept its weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from atlas.methods.uvc.architecture import ViTShape, first_layers
from atlas.methods.uvc.criteria import by_block, head_gradients, head_products, in_pieces
from atlas.methods.uvc.errors import InfeasibleBudgetError
from atlas.methods.uvc.plan import CompressionPlan
from atlas.methods.uvc.scores import stacked


class UnitSignals(NamedTuple):
    """What speaks for keeping, and for growing, every head (L, H) and every neuron (L, M); non-negative."""

    keep_heads: Tensor
    grow_heads: Tensor
    keep_neurons: Tensor
    grow_neurons: Tensor


def exchanged_share(step: int, last: int, first_share: float) -> float:
    """Share of the kept units that are exchanged at a step: ``first_share`` at 0, by half a cosine to 0 at ``last``."""
    return first_share / 2 * (1 + math.cos(math.pi * min(step, last) / last))


def unit_counts(
    shape: ViTShape, budget: float, head_share: float | None = None, neuron_share: float | None = None
) -> tuple[list[int], list[int]]:
    """How many heads and how many neurons every block keeps: the same share of each, of which at least one stays.

    Without ``head_share``, the one that is nearest to the share of neurons that the budget then leaves; without
    ``neuron_share``, as many as the budget leaves.

    Raises
    ------
    InfeasibleBudgetError
        No such model fits into the budget; names what the smallest costs.
    """
    heads, neurons = shape.per_block("heads"), shape.per_block("mlp_dim")
    most_heads, _, most_neurons = shape.widest

    def counts(share: float, of: tuple[int, ...]) -> list[int]:
        return [max(1, int(share * count + 1e-9)) for count in of]

    def cost(head_part: float, neuron_part: float) -> float:
        widths = zip(counts(head_part, heads), shape.per_block("head_dim"), counts(neuron_part, neurons), strict=True)
        each = sum(kept * width * (shape.head_macs + shape.dim_macs) + some * shape.neuron_macs for kept, width, some in widths)
        return (shape.embed_macs + each) / shape.full_macs

    def neurons_left(head_part: float) -> float | None:
        """The largest share of neurons that fits beside a share of heads."""
        grid = [neuron_share] if neuron_share is not None else [part / most_neurons for part in range(most_neurons, 0, -1)]
        return next((part for part in grid if cost(head_part, part) <= budget), None)

    head_parts = [head_share] if head_share is not None else [part / most_heads for part in range(1, most_heads + 1)]
    fitting = [(part, left) for part in head_parts if (left := neurons_left(part)) is not None]
    if not fitting:
        least = cost(head_parts[0], neuron_share or 1 / most_neurons)
        raise InfeasibleBudgetError(f"budget {budget:g} is below the smallest model with these shares, {least:.6f}")
    chosen = min(fitting, key=lambda pair: abs(pair[0] - pair[1]))
    return counts(chosen[0], heads), counts(chosen[1], neurons)


def chosen_plan(shape: ViTShape, counts: tuple[list[int], list[int]], heads: Tensor, neurons: Tensor) -> CompressionPlan:
    """Keep so many heads and neurons of every block, those with the largest scores (L, H) and (L, M)."""
    plan = CompressionPlan.identity(shape)
    for layer, (some_heads, some_neurons) in enumerate(zip(*counts, strict=True)):
        own_heads, own_neurons = shape.per_block("heads")[layer], shape.per_block("mlp_dim")[layer]
        plan.dims[layer, ~_largest(heads[layer, :own_heads].cpu(), some_heads, plan.dims.shape[1])] = False
        plan.neurons[layer] = _largest(neurons[layer, :own_neurons].cpu(), some_neurons, plan.neurons.shape[1])
    return plan


def random_plan(shape: ViTShape, counts: tuple[list[int], list[int]], generator: torch.Generator) -> CompressionPlan:
    """Keep so many heads and neurons of every block, drawn at random: where training from scratch begins."""
    heads, _, neurons = shape.widest
    draws = torch.rand(shape.depth, heads + neurons, generator=generator)
    return chosen_plan(shape, counts, draws[:, :heads], draws[:, heads:])


def exchanged(plan: CompressionPlan, signals: UnitSignals, shape: ViTShape, share: float) -> CompressionPlan:
    """Prune ⌈share · kept⌉ heads and neurons of every block, and grow as many others.

    What was pruned just now may come back, as in the released code, where nothing else has a larger gradient.
    """
    heads = plan.heads
    for layer, (count, size) in enumerate(zip(shape.per_block("heads"), shape.per_block("mlp_dim"), strict=True)):
        own = (signals.keep_heads[layer, :count].cpu(), signals.grow_heads[layer, :count].cpu())
        heads[layer, :count] = _turned_over(heads[layer, :count], *own, share)
        own = (signals.keep_neurons[layer, :size].cpu(), signals.grow_neurons[layer, :size].cpu())
        plan.neurons[layer, :size] = _turned_over(plan.neurons[layer, :size], *own, share)
    return CompressionPlan(plan.keep, shape.dims_exist() & heads[..., None], plan.neurons)


def _turned_over(kept: Tensor, keep: Tensor, grow: Tensor, share: float) -> Tensor:
    """One block's units (n,) bool after an exchange."""
    count = math.ceil(share * int(kept.sum()) - 1e-9)
    stay = kept.clone()
    stay[keep.masked_fill(~kept, torch.inf).sort(stable=True).indices[:count]] = False
    stay[grow.masked_fill(stay, -torch.inf).sort(descending=True, stable=True).indices[:count]] = True
    return stay


def _largest(scores: Tensor, count: int, size: int) -> Tensor:
    """Bool (size,): where the ``count`` largest scores (n,) are; the first among equals."""
    chosen = torch.zeros(size, dtype=torch.bool)
    chosen[scores.sort(descending=True, stable=True).indices[:count]] = True
    return chosen


def unit_signals(
    model: Any,
    images: Tensor,
    targets: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor],
    shape: ViTShape,
    micro_batch: int | None = None,
) -> UnitSignals:
    """Measure every unit of a model whose removed ones are silent, on one batch, in its present mode.

    Parameters
    ----------
    images, targets : Tensor
        (batch, channels, height, width), and what ``loss`` compares the logits with; ``loss`` returns a mean.
    micro_batch : int, optional
        How many images are in memory at once; by default all.
    """
    layers = [[*first_layers(block.mlp).values(), block.mlp.fc2] for block in model.blocks]
    hidden = [layer.weight for own in layers for layer in own]
    total = [torch.zeros_like(weight) for weight in hidden]
    products: list[Tensor] = []
    norms: list[Tensor] = []
    for share, some, their in in_pieces(images, targets, micro_batch):
        outputs, by_output, by_weight = head_gradients(model, some, share, their, loss, hidden)
        products.append(head_products(outputs, by_output, shape))
        pairs = zip(by_output, shape.per_block("heads"), strict=True)
        norms.append(stacked([gradient.abs().unflatten(-1, (count, -1)).sum((1, 3)) for gradient, count in pairs]))
        for own, gradient in zip(total, by_weight, strict=True):
            own += gradient
    sizes = [len(own) for own in layers]
    return UnitSignals(
        torch.cat(products, 1).mean(1),
        torch.cat(norms, 1).sum(1),
        stacked(by_block([weight.detach() for weight in hidden], sizes)),
        stacked(by_block(total, sizes)),
    )


@torch.no_grad()
def silence(model: Any, plan: CompressionPlan) -> None:
    """Set to 0, in place, the values of removed heads and what removed neurons feed forward."""
    for layer, block in enumerate(model.blocks):
        attention = block.attn
        count, inner = attention.num_heads, attention.proj.in_features
        gone = (~plan.heads[layer, :count]).repeat_interleave(inner // count)
        for values in _values_of(attention, inner):
            values[gone.to(values.device)] = 0
        neurons = plan.neurons[layer, : block.mlp.fc2.in_features]
        block.mlp.fc2.weight[:, ~neurons.to(block.mlp.fc2.weight.device)] = 0


def _values_of(attention: Any, inner: int) -> list[Tensor]:
    """Weights (inner, dim) and biases (inner,) that make the values, as views; ``inner`` is the width of all heads."""
    joint = getattr(attention, "qkv", None)
    layer = attention.v_proj if joint is None else joint
    views = [part.data[-inner:] for part in (layer.weight, layer.bias) if part is not None]
    own = getattr(attention, "v_bias", None)
    return [*views, own.data] if own is not None else views
