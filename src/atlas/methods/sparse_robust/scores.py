"""Static masks by score: magnitude, SNIP, GraSP, SynFlow.

SNIP: N. Lee et al., ICLR 2019. GraSP: C. Wang et al., *Picking Winning Tickets Before Training by Preserving Gradient Flow*,
ICLR 2020. SynFlow: H. Tanaka et al., *Pruning neural networks without any data by iteratively conserving synaptic flow*,
NeurIPS 2020.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from atlas.methods.sparse_robust.masks import Masks, check_masks, prunable, require_density
from atlas.methods.sparse_robust.settings import Criterion, Scope, ScoreSettings
from atlas.nn.examples import as_loader, as_tensor, in_type_of, is_pair
from atlas.nn.kinds import require_whole

DEFAULT = ScoreSettings()
CRITERIA = get_args(Criterion)
GRASP_TEMPERATURE = 200.0


def score_masks(
    model: nn.Module,
    density: float,
    criterion: Criterion,
    data: Any = None,
    scope: Scope = DEFAULT.scope,
    rounds: int = DEFAULT.rounds,
) -> Masks:
    """Keep the weights of the highest score.

    Ties at the threshold are all pruned. Of N weights, ⌊(1 − d)·N⌋ are pruned by score, and by magnitude the nearest whole
    number to (1 − d)·N, as in ``torch.nn.utils.prune``.

    Parameters
    ----------
    data : pair, Dataset, DataLoader or iterable of (x, y)
        Clean batches for SNIP and GraSP; SynFlow takes the shape of an input from it, and magnitude needs none.
    scope : {"global", "layer"}
        One threshold for all weights, or one per layer.
    rounds : int
        SynFlow prunes in this many rounds, to density d^(k/rounds) in the k-th. A single one is quicker, and
        may empty a layer.

    Raises
    ------
    ValueError
        The density is outside (0, 1], the criterion or scope does not exist, or it needs data and has none.
    """
    require_density(density)
    require_whole(rounds=rounds)
    if scope not in ("global", "layer"):
        raise ValueError(f"scope must be global or layer, not {scope!r}")
    if criterion != "synflow":
        return _highest(saliency(model, criterion, data), density, scope, nearest=criterion == "magnitude")
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, not {rounds}")
    masks: Masks | None = None
    for done in range(1, rounds + 1):
        masks = _highest(saliency(model, criterion, data, masks), density ** (done / rounds), scope, nearest=False)
    assert masks is not None
    return masks


def saliency(
    model: nn.Module,
    criterion: Criterion,
    data: Any = None,
    masks: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Return the score of every prunable weight, by parameter name and of its shape.

    The model is left as it was, frozen weights included.

    Parameters
    ----------
    masks : mapping, optional
        Weights that exist already, for SynFlow's rounds; masked ones score 0.

    Raises
    ------
    ValueError
        The criterion does not exist, or it needs data and has none.
    """
    if criterion not in CRITERIA:
        raise ValueError(f"criterion must be one of {', '.join(CRITERIA)}, not {criterion!r}")
    weights = prunable(model)
    if criterion == "magnitude":
        return {name: weight.detach().abs() for name, weight in weights.items()}
    batches = _batches(model, data, criterion)
    if criterion == "synflow":
        with torch.inference_mode(False), torch.enable_grad():
            return _synflow(model, next(iter(batches))[0], masks)
    with torch.inference_mode(False), torch.enable_grad(), _untouched(model, weights):
        return _snip(model, weights, batches) if criterion == "snip" else _grasp(model, weights, batches)


def _batches(model: nn.Module, data: Any, criterion: str) -> list[tuple[Tensor, Tensor]]:
    """A pair of arrays as one batch, a dataset in batches of its order, and what holds batches as it is; in tensors."""
    found = [] if data is None else [data] if is_pair(data) else list(as_loader(data, shuffle=False))
    if not found:
        raise ValueError(f"{criterion} needs data: batches of (x, y)")
    batches = []
    for batch in found:
        if not isinstance(batch, tuple | list) or len(batch) < 2:
            raise TypeError(f"data must be made of batches (x, y), not of a {type(batch).__name__}")
        inputs, labels = in_type_of(model, batch[0], "data's inputs"), as_tensor(batch[1], "data's labels")
        if criterion != "synflow" and labels.is_floating_point() and labels.ndim == 1:  # SynFlow reads none
            raise TypeError(f"data's labels are {labels.dtype}; class numbers ({len(labels)},) are needed")
        batches.append((inputs, labels))
    return batches


@contextmanager
def _untouched(model: nn.Module, weights: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """Weights ask for gradients within the block; they, and the buffers (running statistics), are as before afterwards."""
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    frozen = [weight for weight in weights.values() if not weight.requires_grad]
    try:
        for weight in frozen:
            weight.requires_grad_(True)
        yield
    finally:
        for weight in frozen:
            weight.requires_grad_(False)
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(before[name])


def _gradients(
    model: nn.Module, weights: Mapping[str, nn.Parameter], x: Tensor, y: Tensor, temperature: float = 1.0
) -> list[Tensor]:
    """Gradients of the clean cross-entropy with respect to the weights, themselves differentiable."""
    # copies: batches made in inference mode have no backward pass
    loss = functional.cross_entropy(model(x.detach().clone()) / temperature, y.long().clone())
    return list(torch.autograd.grad(loss, list(weights.values()), create_graph=temperature != 1.0, materialize_grads=True))


def _snip(model: nn.Module, weights: Mapping[str, nn.Parameter], batches: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """|Σ over batches of θ·∂L/∂θ|: to first order, by how much the loss changes when a weight is taken out."""
    total = [torch.zeros_like(weight) for weight in weights.values()]
    for x, y in batches:
        for sum_, gradient in zip(total, _gradients(model, weights, x, y), strict=True):
            sum_.add_(gradient.detach())
    return {name: (sum_ * weight.detach()).abs() for (name, weight), sum_ in zip(weights.items(), total, strict=True)}


def _grasp(model: nn.Module, weights: Mapping[str, nn.Parameter], batches: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """θ·Hg: positive where taking the weight out lowers the gradient's norm, so that the largest are kept."""
    direction = [torch.zeros_like(weight) for weight in weights.values()]
    for x, y in batches:
        for sum_, gradient in zip(direction, _gradients(model, weights, x, y, GRASP_TEMPERATURE), strict=True):
            sum_.add_(gradient.detach())
    total = [torch.zeros_like(weight) for weight in weights.values()]
    for x, y in batches:
        gradients = _gradients(model, weights, x, y, GRASP_TEMPERATURE)
        product = torch.stack([(along * gradient).sum() for along, gradient in zip(direction, gradients, strict=True)]).sum()
        second = torch.autograd.grad(product, list(weights.values()), allow_unused=True)
        for sum_, gradient in zip(total, second, strict=True):
            if gradient is not None:  # a weight on which its own gradient does not depend
                sum_.add_(gradient)
    return {name: sum_ * weight.detach() for (name, weight), sum_ in zip(weights.items(), total, strict=True)}


def _synflow(model: nn.Module, x: Tensor, masks: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """|θ·∂R/∂θ| of the sum R of the outputs of the network of absolute values at an input of ones.

    In evaluation mode, on a copy in double precision: products over the depth overflow single precision.
    """
    linear = copy.deepcopy(model).double().eval()
    with torch.no_grad():
        for name, value in (*linear.named_parameters(), *linear.named_buffers()):
            value.abs_()
            if masks is not None and name in masks:
                value.mul_(masks[name])
    weights = prunable(linear)
    for weight in weights.values():
        weight.requires_grad_(True)
    ones = torch.ones_like(x[:1], dtype=torch.float64)
    gradients = torch.autograd.grad(linear(ones).sum(), list(weights.values()), materialize_grads=True)
    return {name: (weight.detach() * gradient).abs() for (name, weight), gradient in zip(weights.items(), gradients, strict=True)}


def _highest(scores: Mapping[str, Tensor], density: float, scope: str, *, nearest: bool) -> Masks:
    def threshold(values: Tensor) -> Tensor:
        pruned = (1 - density) * values.numel()
        count = round(pruned) if nearest else int(pruned)
        return values.kthvalue(count).values if count else values.new_full((), -torch.inf)

    if scope == "layer":
        return {name: score > threshold(score.flatten()) for name, score in scores.items()}
    everywhere = threshold(torch.cat([score.flatten() for score in scores.values()]))
    return {name: score > everywhere for name, score in scores.items()}


def magnitude_ticket(model: nn.Module, density: float) -> Masks:
    """Robust Bird's final prune: global magnitude over convolutions and linear layers."""
    return check_masks(model, score_masks(model, density, "magnitude"))
