"""From a plan that is near a budget to one that meets it and wastes nothing: equal costs make comparisons fair.

Units are removed in ascending order of relative score per multiply-accumulate, and added back in descending order. Costs of
units are constants, so that removal is a prefix of one sorted list, and a unit that does not fit never fits later: O(U log U) for
U units.
"""

from __future__ import annotations

import heapq
import math

import torch
from torch import Tensor

from atlas.methods.uvc.architecture import ViTShape
from atlas.methods.uvc.errors import InfeasibleBudgetError
from atlas.methods.uvc.plan import CompressionPlan
from atlas.methods.uvc.scores import UnitScores, relative
from atlas.nn.examples import require_numbers


def require_budget(budget: float) -> None:
    """Refuse what is no share of the dense model's multiply-accumulates.

    Raises
    ------
    TypeError, ValueError
        The budget is no number; or not in (0, 1].
    """
    require_numbers(budget=budget)
    if not (math.isfinite(budget) and 0 < budget <= 1):
        raise ValueError(f"budget must be in (0, 1], not {budget}")


def allowed_macs(shape: ViTShape, budget: float) -> int:
    """The most multiply-accumulates that meet a budget, as :meth:`.CompressionPlan.r_phys` divides."""
    require_budget(budget)
    macs = int(budget * shape.full_macs)
    while macs / shape.full_macs > budget:
        macs -= 1
    while (macs + 1) / shape.full_macs <= budget:
        macs += 1
    return macs


def minimum_macs(shape: ViTShape, *, prune: bool = True, skip: bool = True) -> int:
    """Multiply-accumulates of the smallest model that compression can leave: one head, dim and neuron where it prunes."""

    def smallest(layer: int) -> int:
        if not prune:
            return shape.block_macs(layer)
        return _least_block(shape, layer, 1)

    blocks = [smallest(layer) for layer in range(shape.depth)]
    return shape.embed_macs + (min(blocks) if skip else sum(blocks))


def reachable_macs(shape: ViTShape, *, prune: bool = True, skip: bool = True) -> int:
    """Multiply-accumulates down to which every search can be repaired, whatever heads it keeps and whichever block it prefers.

    Where it prunes, that is the largest block with one dim in each of its heads and one neuron, as :func:`fit_to_budget` empties
    no head; where it only skips, the largest block as it is. Never below :func:`minimum_macs`, to which a search may come.
    """

    def least(layer: int) -> int:
        if not prune:
            return shape.block_macs(layer)
        return _least_block(shape, layer, shape.per_block("heads")[layer])

    block = max(least(layer) for layer in range(shape.depth))
    return max(shape.embed_macs + block, minimum_macs(shape, prune=prune, skip=skip))


def require_reachable(shape: ViTShape, budget: float, *, prune: bool = True, skip: bool = True) -> None:
    """Refuse a budget that the repair of a search may not meet.

    Raises
    ------
    InfeasibleBudgetError
        It is below :func:`reachable_macs`; names that bound, and what it is.
    """
    bound = reachable_macs(shape, prune=prune, skip=skip)
    if allowed_macs(shape, budget) >= bound:
        return
    if bound == minimum_macs(shape, prune=prune, skip=skip) and not skip:
        what = "every block with one head, dim and neuron" if prune else "the dense model, as nothing is pruned or skipped"
    else:
        what = "one block with one dim in each of its heads and one neuron" if prune else "one whole block"
    raise InfeasibleBudgetError(
        f"budget {budget:g} is below {_share(bound, shape)}, the smallest surviving model that every search can reach: {what}"
    )


def _share(macs: int, shape: ViTShape) -> str:
    """Multiply-accumulates relative to the dense model, rounded up to a budget that holds them."""
    return f"{math.ceil(macs / shape.full_macs * 1e6) / 1e6:.6f}"


def _least_block(shape: ViTShape, layer: int, heads: int) -> int:
    """Multiply-accumulates of a block of which some heads stay, with one dim in each, and one neuron."""
    return heads * (shape.per_block("head_dim")[layer] * shape.head_macs + shape.dim_macs) + shape.neuron_macs


def fit_to_budget(
    plan: CompressionPlan, shape: ViTShape, scores: UnitScores | tuple[Tensor, ...], budget: float
) -> CompressionPlan:
    """Remove the least, then add back the most useful units, until R_phys ≤ budget and nothing more fits.

    Parameters
    ----------
    plan : CompressionPlan
        Where to start; not changed.
    shape : ViTShape
        Of the dense model.
    scores : UnitScores, or (dims, neurons) or (dims, neurons, blocks)
        Squared norms; compared relative to their mean in the head or layer. Where no pruning inside blocks meets the budget, the
        kept block of lowest ``blocks`` score is dropped (the last, without such scores).
    budget : float
        Multiply-accumulates left, relative to the dense model.

    Returns
    -------
    CompressionPlan
        Meets the budget; no head or layer that the plan kept is emptied; heads that had lost all dims may come back.

    Raises
    ------
    InfeasibleBudgetError
        Even one block with one dim in each of its heads and one neuron costs more; names that minimum.
    PlanError
        The plan does not fit the shape.
    ValueError
        A score is NaN, scores have another shape, or the budget is not in (0, 1].
    """
    plan.validate(shape)
    scores = UnitScores(*(score.detach().cpu() for score in scores if score is not None))
    sizes = (plan.dims.shape, plan.neurons.shape, plan.keep.shape)
    for name, score, size in zip(UnitScores._fields, scores, sizes, strict=False):
        if score is not None and score.shape != size:
            raise ValueError(f"scores of {name} must be {tuple(size)} as the plan's, not {tuple(score.shape)}")
        if score is not None and bool(score.isnan().any()):
            raise ValueError(f"scores of {name} hold NaN: what is weakest is not known")
    allowed = allowed_macs(shape, budget)
    plan = plan.copy()
    while True:
        fitted = _removed(plan, shape, scores, allowed)
        if fitted is not None:
            return _refilled(fitted, shape, scores, allowed)
        if int(plan.keep.sum()) == 1:
            least = _share(_floor(plan, shape), shape)
            raise InfeasibleBudgetError(f"budget {budget:g} is below what the last block can be pruned to, {least}")
        plan.keep[_weakest_block(plan, scores)] = False


def fill_blocks(
    plan: CompressionPlan, shape: ViTShape, scores: UnitScores, budget: float, slack: float = 0.01
) -> CompressionPlan:
    """Fit a plan whose gates closed more blocks than the budget asks for: the best skipped blocks come back, as far as they fit.

    Without this a search that overshot would be compared at a lower cost than its competitors. A block comes back with its best
    dim of its strongest head and its best neuron, and takes more of its units, in descending order of score per
    multiply-accumulate, until nothing more fits. Blocks that the search kept give nothing up for it. Errors as
    :func:`fit_to_budget`.

    Parameters
    ----------
    scores : UnitScores
        With ``blocks``: skipped blocks come back in descending order of it.
    slack : float
        How far below the budget the result may stay while there is a block of which something fits.
    """
    fitted = fit_to_budget(plan, shape, scores, budget)
    if scores.blocks is None:
        return fitted
    blocks = scores.blocks.detach().cpu()
    scores = UnitScores(scores.dims.detach().cpu(), scores.neurons.detach().cpu(), blocks)
    allowed = allowed_macs(shape, budget)
    for layer in blocks.sort(descending=True, stable=True).indices.tolist():
        if budget - fitted.r_phys(shape) <= slack:
            break
        if fitted.keep[layer]:
            continue
        wider = _with_least_of(layer, fitted, shape, scores)
        if wider.macs(shape) <= allowed:
            fitted = _refilled(wider, shape, scores, allowed)
    return fitted


def fit_blocks(plan: CompressionPlan, shape: ViTShape, preferences: Tensor, budget: float) -> CompressionPlan:
    """Keep whole blocks in descending order of preference (L,), as many as fit; for plans that only skip.

    Raises
    ------
    InfeasibleBudgetError
        Not even the cheapest block fits; names the minimum.
    ValueError
        Preferences are not one per block, or the budget is not in (0, 1].
    """
    plan.validate(shape)
    allowed = allowed_macs(shape, budget)
    if preferences.shape != (shape.depth,):
        raise ValueError(f"preferences must be ({shape.depth},), one per block, not {tuple(preferences.shape)}")
    fitted = plan.copy()
    fitted.keep = torch.zeros_like(plan.keep)
    used = shape.embed_macs
    for layer in preferences.detach().cpu().sort(descending=True, stable=True).indices.tolist():
        fitted.keep[layer] = True
        if fitted.macs(shape) > allowed:
            fitted.keep[layer] = False
            break
    if not bool(fitted.keep.any()):
        least = (used + min(shape.block_macs(layer) for layer in range(shape.depth))) / shape.full_macs
        raise InfeasibleBudgetError(f"budget {budget:g} holds no whole block; the smallest model of one block is {least:.6f}")
    return fitted


def uniform_widths(plan: CompressionPlan, shape: ViTShape, scores: UnitScores | tuple[Tensor, ...]) -> CompressionPlan:
    """Give all kept heads of a block the same number of dims, the same total rounded down: the best by the scores (L, H, d).

    A model exported from such a plan needs no padding.
    """
    plan.validate(shape)
    even = plan.copy()
    dims = scores[0].detach().cpu().masked_fill(~shape.dims_exist(), -torch.inf)
    for layer in plan.keep.nonzero().flatten().tolist():
        heads = plan.heads[layer].nonzero().flatten().tolist()
        width = max(1, int(plan.dims[layer].sum()) // len(heads))
        for head in heads:
            # dims that the plan keeps come first; among equals the higher index, as pruning takes the lower one first
            preference = (dims[layer, head] + plan.dims[layer, head] * (dims[layer, head].max() + 1)).flip(0)
            best = len(preference) - 1 - preference.sort(descending=True, stable=True).indices[:width]
            even.dims[layer, head] = False
            even.dims[layer, head, best] = True
    return even


def _weakest_block(plan: CompressionPlan, scores: UnitScores) -> int:
    kept = plan.keep.nonzero().flatten()
    if scores.blocks is None:
        return int(kept[-1])
    return int(kept[scores.blocks[kept].argmin()])


def _with_least_of(layer: int, plan: CompressionPlan, shape: ViTShape, scores: UnitScores) -> CompressionPlan:
    """The plan and, of a block that it skips, the best dim of the head of highest total score and the best neuron."""
    dims = scores.dims[layer].double().masked_fill(~shape.dims_exist()[layer], 0)
    head = int(dims.sum(-1).argmax())
    neurons = scores.neurons[layer].double().masked_fill(~shape.neurons_exist()[layer], -torch.inf)
    wider = plan.copy()
    wider.keep[layer] = True
    wider.dims[layer], wider.neurons[layer] = False, False
    wider.dims[layer, head, int(dims[head].argmax())] = True
    wider.neurons[layer, int(neurons.argmax())] = True
    return wider


def _floor(plan: CompressionPlan, shape: ViTShape) -> int:
    """Multiply-accumulates when every kept head and layer is down to its last unit."""
    total = shape.embed_macs
    for layer in plan.keep.nonzero().flatten().tolist():
        total += _least_block(shape, layer, int(plan.heads[layer].sum()))
    return total


def _per_cost(shape: ViTShape, scores: UnitScores) -> tuple[Tensor, Tensor]:
    """Relative scores per multiply-accumulate (in units of the dense model), float64."""
    dims, neurons, _ = relative(UnitScores(scores.dims.double(), scores.neurons.double(), None), shape)
    return dims * (shape.full_macs / shape.dim_macs), neurons * (shape.full_macs / shape.neuron_macs)


def _last_ones(kept: Tensor, values: Tensor) -> Tensor:
    """Bool, like ``kept``: the highest kept unit of the last axis (the higher index among equals), which must stay."""
    masked = values.masked_fill(~kept, -torch.inf).flip(-1)
    best = kept.shape[-1] - 1 - masked.argmax(-1, keepdim=True)
    return torch.zeros_like(kept).scatter(-1, best, kept.any(-1, keepdim=True))


def _removed(plan: CompressionPlan, shape: ViTShape, scores: UnitScores, allowed: int) -> CompressionPlan | None:
    """The plan without its least useful units, as few as meet the budget; ``None`` if all of them are not enough."""
    excess = plan.macs(shape) - allowed
    if excess <= 0:
        return plan.copy()
    by_dim, by_neuron = _per_cost(shape, scores)
    kept = (plan.dims & plan.keep[:, None, None], plan.neurons & plan.keep[:, None])
    loose = (kept[0] & ~_last_ones(kept[0], by_dim), kept[1] & ~_last_ones(kept[1], by_neuron))
    values = torch.cat((by_dim[loose[0]], by_neuron[loose[1]]))
    split = int(loose[0].sum())
    costs = torch.full((len(values),), shape.dim_macs, dtype=torch.int64)
    costs[split:] = shape.neuron_macs
    order = values.sort(stable=True).indices
    saved = costs[order].cumsum(0)
    count = int((saved < excess).sum()) + 1
    if count > len(values):
        return None
    gone = torch.zeros(len(values), dtype=torch.bool)
    gone[order[:count]] = True
    fitted = plan.copy()
    fitted.dims[loose[0]] &= ~gone[:split]
    fitted.neurons[loose[1]] &= ~gone[split:]
    return fitted


def _refilled(plan: CompressionPlan, shape: ViTShape, scores: UnitScores, allowed: int) -> CompressionPlan:
    """The plan with the most useful units that still fit, one after another."""
    left = allowed - plan.macs(shape)
    by_dim, by_neuron = _per_cost(shape, scores)
    exist = shape.dims_exist()
    heap: list[tuple[float, int, int, int]] = []  # (−value, layer, head or −1 for a neuron, index)
    for layer in plan.keep.nonzero().flatten().tolist():
        width = shape.per_block("head_dim")[layer]
        share = shape.dim_macs / (shape.dim_macs + width * shape.head_macs)
        for head in range(shape.per_block("heads")[layer]):
            missing = (~plan.dims[layer, head] & exist[layer, head]).nonzero().flatten().tolist()
            if bool(plan.heads[layer, head]):
                heap += [(-float(by_dim[layer, head, index]), layer, head, index) for index in missing]
            else:
                best = max(missing, key=lambda index: float(by_dim[layer, head, index]))
                heap.append((-share * float(by_dim[layer, head, best]), layer, head, best))
        missing = (~plan.neurons[layer] & shape.neurons_exist()[layer]).nonzero().flatten().tolist()
        values = by_neuron[layer].tolist()
        heap += [(-values[index], layer, -1, index) for index in missing]
    heapq.heapify(heap)
    while heap and left >= min(shape.dim_macs, shape.neuron_macs):
        _, layer, head, index = heapq.heappop(heap)
        revived = head >= 0 and not bool(plan.heads[layer, head])
        width = shape.per_block("head_dim")[layer]
        cost = shape.neuron_macs if head < 0 else shape.dim_macs + revived * width * shape.head_macs
        if cost > left:
            continue
        left -= cost
        (plan.neurons[layer] if head < 0 else plan.dims[layer, head])[index] = True
        if revived:
            others = (~plan.dims[layer, head] & exist[layer, head]).nonzero().flatten().tolist()
            for other in others:
                heapq.heappush(heap, (-float(by_dim[layer, head, other]), layer, head, other))
    return plan
