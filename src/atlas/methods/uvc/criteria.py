"""What to remove without searching: the baselines' criteria, structured and unstructured.

``omp`` is one-shot magnitude, ``tp`` the first-order Taylor criterion |Σ g·w|, ``gmp`` gradual magnitude on the cubic schedule of
Zhu and Gupta (2017, Eq. 1). Structured, units are dims, heads and neurons in one ranking of relative score per cost;
unstructured, they are single weights of the linear and convolutional layers, which saves no computation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from atlas.methods.uvc.architecture import ViTShape, first_layers, scored_weights
from atlas.methods.uvc.distillation import class_logits
from atlas.methods.uvc.plan import CompressionPlan
from atlas.methods.uvc.repair import fit_blocks, fit_to_budget, require_budget
from atlas.methods.uvc.scores import Ranked, UnitScores, stacked
from atlas.methods.uvc.settings import BlindSettings
from atlas.nn.examples import as_loader, as_tensor, in_type_of, is_pair

DEFAULT_ORDER = BlindSettings().order


def uniform_plan(shape: ViTShape, scores: UnitScores, budget: float) -> CompressionPlan:
    """Remove the same fraction of neurons, and of dims from every head, in every layer: the smallest that meets the budget.

    Raises
    ------
    InfeasibleBudgetError
        See :func:`.repair.fit_to_budget`.
    ValueError
        The budget is not in (0, 1].
    """
    require_budget(budget)
    dims, neurons = Ranked(scores.dims.cpu(), shape.dims_exist()), Ranked(scores.neurons.cpu(), shape.neurons_exist())
    width = torch.tensor(shape.per_block("head_dim"))
    size = torch.tensor(shape.per_block("mlp_dim"))

    def at(fraction: float) -> CompressionPlan:
        plan = CompressionPlan.identity(shape)
        inner = (fraction * width).floor().minimum(width - 1)
        plan.dims &= ~dims.bottom(inner[:, None].expand(plan.dims.shape[:2]).double())
        plan.neurons &= ~neurons.bottom((fraction * size).floor().minimum(size - 1).double())
        return plan

    small, large = 0.0, 1.0
    for _ in range(30):
        middle = (small + large) / 2
        if at(middle).r_phys(shape) <= budget:
            large = middle
        else:
            small = middle
    start = CompressionPlan.identity(shape) if budget >= 1 else at(large)
    return fit_to_budget(start, shape, scores, budget)


def one_shot_plan(shape: ViTShape, scores: UnitScores, budget: float) -> CompressionPlan:
    """Remove the units of least relative score per cost, anywhere, until the budget is met."""
    return fit_to_budget(CompressionPlan.identity(shape), shape, scores, budget)


def cubic_sparsity(step: int, start: int, interval: int, times: int, final: float) -> float:
    """Sparsity that gradual pruning has reached at ``step``: s_end · (1 − (1 − (t − t₀)/(nΔt))³), in ``times`` jumps.

    Examples
    --------
    >>> [round(cubic_sparsity(t, 10, 5, 4, 0.6), 6) for t in (10, 15, 20, 25, 30)]
    [0.0, 0.346875, 0.525, 0.590625, 0.6]
    """
    jumps = min(max(0, (step - start) // interval), times)
    return final * (1 - (1 - jumps / times) ** 3)


def gradual_plan(
    shape: ViTShape, scores: UnitScores, budget: float, step: int, *, start: int, interval: int, times: int
) -> CompressionPlan:
    """The plan of gradual structured pruning at a step: the cubic schedule on the share of computation that is removed."""
    removed = cubic_sparsity(step, start, interval, times, 1 - budget)
    return one_shot_plan(shape, scores, 1 - removed)


def evenly_spaced_plan(shape: ViTShape, budget: float, order: str = DEFAULT_ORDER) -> CompressionPlan:
    """Keep whole blocks without looking at the weights: evenly spaced (``spaced``), or the first ones (``first``).

    Raises
    ------
    InfeasibleBudgetError
        Not even one block fits.
    ValueError
        ``order`` is neither.
    """
    if order not in ("spaced", "first"):
        raise ValueError(f"order must be 'spaced' or 'first', not {order!r}")
    identity = CompressionPlan.identity(shape)
    first = fit_blocks(identity, shape, -torch.arange(shape.depth).double(), budget)
    if order == "first":
        return first
    count = int(first.keep.sum())
    chosen = torch.linspace(0, shape.depth - 1, count).round().long() if count > 1 else torch.tensor([0])
    preferences = torch.zeros(shape.depth).index_fill_(0, chosen, 1.0)
    return fit_blocks(identity, shape, preferences, budget)


def half_scores(shape: ViTShape, heads: Tensor, neurons: Tensor, fraction: float) -> CompressionPlan:
    """Keep int(fraction · H) heads and int(fraction · M) neurons of every layer, at least one, by their scores (L, H), (L, M)."""
    plan = CompressionPlan.identity(shape)
    for layer, (count, size) in enumerate(zip(shape.per_block("heads"), shape.per_block("mlp_dim"), strict=True)):
        gone_heads = count - max(1, int(fraction * count))
        gone_neurons = size - max(1, int(fraction * size))
        order = heads[layer, :count].sort(stable=True).indices[:gone_heads]
        plan.dims[layer, order.cpu()] = False
        plan.neurons[layer, neurons[layer, :size].sort(stable=True).indices[:gone_neurons].cpu()] = False
    return plan


def in_pieces(images: Tensor, targets: Tensor, size: int | None) -> Iterator[tuple[float, Tensor, Tensor]]:
    """Parts of images (batch, …) and targets (batch, …), at most ``size`` each, after their share; ``None`` for the whole."""
    size = size or len(images)
    for some, their in zip(images.split(size), targets.split(size), strict=True):
        yield len(some) / len(images), some, their


def batch_gradients(
    model: Any,
    images: Tensor,
    targets: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor],
    weights: Sequence[Tensor],
    micro_batch: int | None = None,
) -> list[Tensor]:
    """Gradients, of the weights' shapes (…), of the mean loss of images (batch, …) and targets (batch, …).

    ``micro_batch`` images are in memory at a time: the same numbers to rounding, in less memory.
    """
    total = [torch.zeros_like(weight) for weight in weights]
    for share, some, their in in_pieces(images, targets, micro_batch):
        gradients = torch.autograd.grad(share * loss(class_logits(model(some)), their), weights)
        for own, gradient in zip(total, gradients, strict=True):
            own += gradient
    return total


def taylor_scores(
    model: Any,
    batches: Any,
    loss: Callable[[Tensor, Tensor], Tensor],
    shape: ViTShape | None = None,
    *,
    micro_batch: int | None = None,
) -> UnitScores:
    """|Σ_{w ∈ unit} g·w| of the columns that :func:`.scores.unit_scores` measures, averaged over batches.

    Parameters
    ----------
    model : nn.Module
        timm VisionTransformer, evaluated in its present mode; its gradients are cleared.
    batches : iterable of (images, targets), pair, Dataset or DataLoader
        At least one; a pair of arrays is one batch.
    loss : callable
        ``loss(logits, targets)``, a mean over the batch; of a model in distilled training, the logits are the mean of its two
        heads.
    micro_batch : int, optional
        How many images of a batch are in memory at once; by default all.
    """
    shape = shape or ViTShape.from_timm(model)
    weights = scored_weights(model)
    sums = [[torch.zeros(w.shape[1], device=w.device) for w in kind] for kind in weights]
    count = 0
    if is_pair(batches):
        batches = [batches]
    elif not isinstance(batches, Iterator):
        batches = as_loader(batches, shuffle=False, name="batches")
    for images, targets in batches:
        images, targets = in_type_of(model, images, "images"), as_tensor(targets, "targets")
        flat = [w for kind in weights for w in kind]
        gradients = batch_gradients(model, images, targets, loss, flat, micro_batch)
        for total, weight, gradient in zip([t for kind in sums for t in kind], flat, gradients, strict=True):
            total += (gradient * weight.detach()).sum(0).abs().float()
        count += 1
    if not count:
        raise ValueError("the Taylor criterion needs at least one batch")
    heads = shape.per_block("heads")
    dims = [total.view(own, -1) / count for total, own in zip(sums[0], heads, strict=True)]
    return UnitScores(stacked(dims), stacked([total / count for total in sums[1]]))


def saliency_plan(
    model: Any,
    images: Tensor,
    targets: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor],
    budget: float,
    *,
    micro_batch: int | None = None,
) -> CompressionPlan:
    """The one-shot baseline of the authors' repository (after S²ViTE): the same fraction of heads and of neurons per layer.

    Images are (batch, channels, height, width), targets (batch,) or (batch, classes).

    Heads by mean_b |Σ ∂L/∂o · o| of their output o before the projection, neurons by the l1 norms of the gradients of their
    row of fc1 and column of fc2; the largest fraction that meets the budget, then :func:`.repair.fit_to_budget`. ``loss`` is
    given the logits, of a model in distilled training the mean of its two heads, and the targets, and returns a mean;
    ``micro_batch`` images are in memory at once, by default all.
    """
    require_budget(budget)
    shape = ViTShape.from_timm(model)
    heads, neurons = _saliencies(model, images, targets, loss, shape, micro_batch)
    best = half_scores(shape, heads, neurons, 0.0)
    for percent in range(1, 101):
        plan = half_scores(shape, heads, neurons, percent / 100)
        if plan.r_phys(shape) <= budget:
            best = plan
    width = shape.widest[1]
    return fit_to_budget(best, shape, UnitScores(heads[..., None].expand(-1, -1, width).contiguous(), neurons), budget)


def _saliencies(
    model: Any,
    images: Tensor,
    targets: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor],
    shape: ViTShape,
    micro_batch: int | None,
) -> tuple[Tensor, Tensor]:
    """(L, H) mean over images of |Σ gradient · output| of each head, (L, M) norms of the neurons' gradients."""
    layers = [[*first_layers(block.mlp).values(), block.mlp.fc2] for block in model.blocks]
    hidden = [layer.weight for own in layers for layer in own]
    total = [torch.zeros_like(weight) for weight in hidden]
    heads: list[Tensor] = []
    for share, some, their in in_pieces(images, targets, micro_batch):
        outputs, by_output, gradients = head_gradients(model, some, share, their, loss, hidden)
        heads.append(head_products(outputs, by_output, shape))
        for own, gradient in zip(total, gradients, strict=True):
            own += gradient
    return torch.cat(heads, 1).mean(1), stacked(by_block(total, [len(own) for own in layers]))


def by_block(tensors: Sequence[Tensor], sizes: Sequence[int]) -> list[Tensor]:
    """ℓ₁ norms of what belongs to each neuron, (M,) per block, of tensors like the weights of its feed-forward.

    ``sizes`` says how many tensors a block has: those of one or two layers into the neurons (M, D), or (2M, D) where one layer
    makes values and gates, and that of the layer out of them (D, M).
    """
    left = iter(tensors)
    norms = []
    for size in sizes:
        *incomings, column = (next(left) for _ in range(size))
        incoming = (
            torch.cat([layer.abs().sum(1) for layer in incomings]).view(-1, column.shape[1]).sum(0)
        )  # values and gates together
        norms.append(incoming + column.abs().sum(0))
    return norms


def head_gradients(
    model: Any,
    images: Tensor,
    share: float,
    targets: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor],
    weights: list[Tensor],
) -> tuple[list[Tensor], tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Of ``share`` · loss of a piece of a batch: outputs of all heads before the projection, their gradients, and the weights'.

    Outputs and their gradients are (batch, tokens, heads · dims), one per block.
    """
    outputs: list[Tensor] = []
    handles = [
        block.attn.proj.register_forward_pre_hook(lambda module, inputs: outputs.append(inputs[0])) for block in model.blocks
    ]
    try:
        value = share * loss(class_logits(model(images)), targets)
    finally:
        for handle in handles:
            handle.remove()
    gradients = torch.autograd.grad(value, [*outputs, *weights])
    return outputs, gradients[: len(outputs)], gradients[len(outputs) :]


def head_products(outputs: Sequence[Tensor], gradients: Sequence[Tensor], shape: ViTShape) -> Tensor:
    """(L, batch, H): |Σ gradient · output| of every head, from (batch, tokens, heads · dims) per block."""
    heads = []
    for output, gradient, count in zip(outputs, gradients, shape.per_block("heads"), strict=True):
        by_head = (output.detach() * gradient).unflatten(-1, (count, -1))
        heads.append(by_head.sum((1, 3)).abs())
    return stacked(heads)


def prunable_weights(model: nn.Module) -> dict[str, Tensor]:
    """Weights (out, …) of all linear and convolutional layers but the classifier, by name: what unstructured pruning ranks."""
    kinds = (nn.Linear, nn.Conv2d)
    return {
        f"{path}.weight": module.weight
        for path, module in model.named_modules()
        if isinstance(module, kinds) and not path.startswith("head")
    }


def weight_masks(values: dict[str, Tensor], sparsity: float) -> dict[str, Tensor]:
    """Bool masks that drop the int(sparsity · n) smallest values of all tensors (…) together; among equals, the earlier ones.

    Parameters
    ----------
    values : dict of Tensor
        Magnitudes, or any other importance, by name.
    sparsity : float
        Share that is removed, in [0, 1).

    Raises
    ------
    ValueError
        ``sparsity`` is outside [0, 1).
    """
    if not 0 <= sparsity < 1:
        raise ValueError(f"sparsity must be in [0, 1), not {sparsity}")
    flat = torch.cat([value.detach().flatten() for value in values.values()])
    kept = torch.ones_like(flat, dtype=torch.bool)
    kept[flat.sort(stable=True).indices[: int(sparsity * len(flat))]] = False
    parts = kept.split([value.numel() for value in values.values()])
    return {name: part.view(value.shape) for (name, value), part in zip(values.items(), parts, strict=True)}
