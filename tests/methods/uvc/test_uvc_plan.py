"""Plans, their repair to a budget, and the baselines' criteria."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from atlas.methods.uvc import (
    CompressionPlan,
    InfeasibleBudgetError,
    PlanError,
    UnitScores,
    ViTShape,
    cubic_sparsity,
    evenly_spaced_plan,
    fill_blocks,
    fit_blocks,
    fit_to_budget,
    gradual_plan,
    one_shot_plan,
    taylor_scores,
    uniform_plan,
    uniform_widths,
    unit_scores,
    weight_masks,
)
from atlas.methods.uvc.criteria import half_scores, prunable_weights, saliency_plan
from atlas.methods.uvc.repair import reachable_macs, require_reachable

SHAPE = ViTShape(4, 3, 5, 15, 12, 7, 6, 2, 1)
UNEQUAL = ViTShape(3, (2, 4, 1), (6, 3, 8), 24, (10, 7, 16), 9, 8, 2, 1)
TINY = ViTShape(12, 3, 64, 192, 768, 197, 196, 16, 3)


def scores_of(shape: ViTShape, seed: int = 0) -> UnitScores:
    random = torch.Generator().manual_seed(seed)
    dims = torch.rand(shape.depth, *shape.widest[:2], generator=random) * shape.dims_exist()
    neurons = torch.rand(shape.depth, shape.widest[2], generator=random) * shape.neurons_exist()
    return UnitScores(dims, neurons, torch.rand(shape.depth, generator=random))


def vit(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    model = VisionTransformer(
        img_size=8, patch_size=4, in_chans=1, num_classes=5, embed_dim=16, depth=3, num_heads=4, mlp_ratio=2, weight_init="jax"
    )
    torch.nn.init.normal_(model.head.weight)
    return model


def ragged(shape: ViTShape, seed: int) -> CompressionPlan:
    random = torch.Generator().manual_seed(seed)
    plan = CompressionPlan.identity(shape)
    plan.dims &= torch.rand(plan.dims.shape, generator=random) < 0.6
    plan.neurons &= torch.rand(plan.neurons.shape, generator=random) < 0.5
    plan.dims[:, 0, 0] = True
    plan.neurons[:, 0] = True
    return plan


def additions(plan: CompressionPlan, shape: ViTShape) -> list[CompressionPlan]:
    """Every plan with one more unit in a kept block."""
    found = []
    for layer in plan.keep.nonzero().flatten().tolist():
        for head, dim in itertools.product(range(shape.widest[0]), range(shape.widest[1])):
            if shape.dims_exist()[layer, head, dim] and not plan.dims[layer, head, dim]:
                more = plan.copy()
                more.dims[layer, head, dim] = True
                found.append(more)
        for neuron in range(shape.widest[2]):
            if shape.neurons_exist()[layer, neuron] and not plan.neurons[layer, neuron]:
                more = plan.copy()
                more.neurons[layer, neuron] = True
                found.append(more)
    return found


@pytest.mark.parametrize("shape", [SHAPE, UNEQUAL])
@pytest.mark.parametrize("budget", [0.9, 0.5, 0.25])
@pytest.mark.parametrize("start", ["identity", "ragged"])
def test_fit_meets_the_budget_and_wastes_nothing(shape: ViTShape, budget: float, start: str) -> None:
    scores = scores_of(shape)
    plan = CompressionPlan.identity(shape) if start == "identity" else ragged(shape, 3)
    given = plan.copy()
    fitted = fit_to_budget(plan, shape, scores, budget)
    assert plan == given
    fitted.validate(shape)
    assert fitted.r_phys(shape) <= budget
    assert all(more.r_phys(shape) > budget for more in additions(fitted, shape))
    assert fit_to_budget(fitted, shape, scores, budget) == fitted
    kept = fitted.keep[:, None]
    assert not (given.heads & kept & ~fitted.heads).any()
    assert not (given.keep & fitted.keep & ~fitted.neurons.any(-1)).any()


def test_fit_removes_in_the_order_of_relative_score_per_cost() -> None:
    """Against a loop that removes one unit at a time."""
    scores = scores_of(SHAPE, 4)
    by_dim = scores.dims / scores.dims.mean(-1, keepdim=True) / SHAPE.dim_macs
    by_neuron = scores.neurons / scores.neurons.mean(-1, keepdim=True) / SHAPE.neuron_macs
    plan = CompressionPlan.identity(SHAPE)
    removed: list[tuple[float, tuple[int, ...]]] = []
    while plan.r_phys(SHAPE) > 0.6:
        units = [
            (float(by_dim[index]), index) for index in map(tuple, plan.dims.nonzero().tolist()) if plan.dims[index[:2]].sum() > 1
        ]
        units += [
            (float(by_neuron[index]), index)
            for index in map(tuple, plan.neurons.nonzero().tolist())
            if plan.neurons[index[0]].sum() > 1
        ]
        value, index = min(units)
        removed.append((value, index))
        (plan.dims if len(index) == 3 else plan.neurons)[index] = False
    for _, index in sorted(removed, reverse=True):
        more = plan.copy()
        (more.dims if len(index) == 3 else more.neurons)[index] = True
        plan = more if more.r_phys(SHAPE) <= 0.6 else plan
    assert fit_to_budget(CompressionPlan.identity(SHAPE), SHAPE, scores, 0.6) == plan


def test_fit_brings_heads_back_and_drops_blocks() -> None:
    scores = scores_of(SHAPE)
    bare = CompressionPlan.identity(SHAPE)
    bare.dims[:, 1:] = False
    assert fit_to_budget(bare, SHAPE, scores, 1.0) == CompressionPlan.identity(SHAPE)
    small = fit_to_budget(CompressionPlan.identity(SHAPE), SHAPE, scores, 0.15)
    assert 0 < int(small.keep.sum()) < 4
    dropped = (~small.keep).nonzero().flatten()
    assert scores.blocks is not None
    assert scores.blocks[dropped].max() < scores.blocks[small.keep].min()
    last = fit_to_budget(CompressionPlan.identity(SHAPE), SHAPE, (scores.dims, scores.neurons), 0.15)
    assert last.keep.tolist() == sorted(last.keep.tolist(), reverse=True)
    with pytest.raises(InfeasibleBudgetError, match="below what the last block can be pruned to, 0.1"):
        fit_to_budget(CompressionPlan.identity(SHAPE), SHAPE, scores, 0.03)


def test_fit_of_a_full_budget_is_the_identity() -> None:
    plan = ragged(SHAPE, 1)
    assert fit_to_budget(plan, SHAPE, scores_of(SHAPE), 1.0) == CompressionPlan.identity(SHAPE)


def test_fit_blocks() -> None:
    preferences = torch.tensor([0.3, 0.9, 0.1, 0.5])
    plan = fit_blocks(CompressionPlan.identity(SHAPE), SHAPE, preferences, 0.6)
    assert plan.keep.tolist() == [False, True, False, True]
    assert plan.r_phys(SHAPE) <= 0.6
    with pytest.raises(InfeasibleBudgetError, match="holds no whole block"):
        fit_blocks(CompressionPlan.identity(SHAPE), SHAPE, preferences, 0.2)


def test_blocks_come_back_where_gates_closed_too_many() -> None:
    scores = scores_of(TINY)
    assert scores.blocks is not None
    plan = CompressionPlan.identity(TINY)
    plan.keep = scores.blocks >= scores.blocks.topk(3).values[-1]
    assert fit_to_budget(plan, TINY, scores, 0.5).r_phys(TINY) < 0.3
    filled = fill_blocks(plan, TINY, scores, 0.5)
    assert 0 <= 0.5 - filled.r_phys(TINY) <= 0.01
    assert scores.blocks[filled.keep].min() > scores.blocks[~filled.keep].max()
    assert fill_blocks(filled, TINY, scores, 0.5) == filled
    before = fit_to_budget(plan, TINY, scores, 0.5)
    assert (filled.dims | ~before.dims)[before.keep].all()  # what the search kept makes no room for a block that comes back
    assert (filled.neurons | ~before.neurons)[before.keep].all()


@pytest.mark.parametrize("shape", [SHAPE, UNEQUAL, TINY])
@pytest.mark.parametrize("kept", [1, 2])
@pytest.mark.parametrize("budget", [0.4, 0.55, 0.7, 0.85, 1.0])
def test_a_block_that_comes_back_takes_only_what_is_left(shape: ViTShape, kept: int, budget: float) -> None:
    scores = scores_of(shape, 3)
    assert scores.blocks is not None
    plan = ragged(shape, 2)
    plan.keep = scores.blocks >= scores.blocks.topk(kept).values[-1]
    before = fit_to_budget(plan, shape, scores, budget)
    filled = fill_blocks(plan, shape, scores, budget)
    filled.validate(shape)
    assert filled.r_phys(shape) <= budget
    assert torch.equal(filled.dims[before.keep], before.dims[before.keep])
    assert torch.equal(filled.neurons[before.keep], before.neurons[before.keep])
    assert filled.keep[before.keep].all()
    # one block at a time: of those that came back, all but the last are whole
    back = (filled.keep & ~before.keep).nonzero().flatten().tolist()
    back.sort(key=lambda layer: -float(scores.blocks[layer]))
    for layer in back[:-1]:
        assert torch.equal(filled.dims[layer], shape.dims_exist()[layer])
        assert torch.equal(filled.neurons[layer], shape.neurons_exist()[layer])
    if budget == 1:
        assert filled == CompressionPlan.identity(shape)


def test_nothing_comes_back_where_not_even_the_least_of_a_block_fits() -> None:
    scores = scores_of(SHAPE)
    assert scores.blocks is not None
    plan = CompressionPlan.identity(SHAPE)
    plan.keep = scores.blocks == scores.blocks.max()
    least = CompressionPlan.identity(SHAPE)
    least.keep = plan.keep.clone()
    budget = (least.macs(SHAPE) + 1) / SHAPE.full_macs
    assert fill_blocks(plan, SHAPE, scores, budget, slack=0) == fit_to_budget(plan, SHAPE, scores, budget)


def test_uniform_widths_keep_the_total() -> None:
    plan = CompressionPlan.identity(SHAPE)
    plan.dims[0, 0, :2] = False
    plan.dims[0, 1, 1] = False  # 3 + 4 + 5 dims
    plan.dims[1, 2] = False
    even = uniform_widths(plan, SHAPE, scores_of(SHAPE))
    assert even.dims[0].sum(-1).tolist() == [4, 4, 4]
    assert even.macs(SHAPE) == plan.macs(SHAPE)
    assert even.dims[1].sum(-1).tolist() == [5, 5, 0]
    assert (even.dims[0, 0] | ~plan.dims[0, 0])[2:].all()  # what was kept stays
    assert uniform_widths(even, SHAPE, scores_of(SHAPE)) == even


def test_json_round_trip() -> None:
    plan = ragged(UNEQUAL, 2)
    plan.keep[1] = False
    assert CompressionPlan.from_json(plan.to_json()) == plan
    with pytest.raises(PlanError, match="not a compression plan"):
        CompressionPlan.from_json('{"keep": [1]}')


def test_plans_that_do_not_fit() -> None:
    plan = CompressionPlan.identity(SHAPE)
    with pytest.raises(PlanError, match=r"dims must be a bool tensor of \(12, 3, 64\)|keep must be"):
        plan.validate(TINY)
    empty = plan.copy()
    empty.dims[2] = False
    with pytest.raises(PlanError, match="block 2 is kept with no heads"):
        empty.validate(SHAPE)
    empty.keep[2] = False
    empty.validate(SHAPE)
    empty.neurons[0] = False
    with pytest.raises(PlanError, match="block 0 is kept with no neurons"):
        empty.validate(SHAPE)
    none = plan.copy()
    none.keep[:] = False
    with pytest.raises(PlanError, match="keeps no block"):
        none.validate(SHAPE)
    wide = CompressionPlan.identity(UNEQUAL)
    wide.dims[:] = True
    with pytest.raises(PlanError, match="does not have"):
        wide.validate(UNEQUAL)


def test_uniform_plan_removes_alike_everywhere() -> None:
    scores = scores_of(TINY)
    plan = uniform_plan(TINY, scores, 0.5)
    assert 0 <= 0.5 - plan.r_phys(TINY) < 1e-3
    kept = plan.neurons.sum(-1)
    assert int(kept.max() - kept.min()) <= 24
    dims = plan.dims.sum(-1)
    assert int(dims.max() - dims.min()) <= 2


def test_gradual_schedule() -> None:
    values = [cubic_sparsity(step, 10, 5, 4, 0.6) for step in (0, 9, 10, 15, 20, 25, 30, 99)]
    assert values == pytest.approx([0, 0, 0, 0.346875, 0.525, 0.590625, 0.6, 0.6])
    scores = scores_of(SHAPE)
    sizes = [gradual_plan(SHAPE, scores, 0.4, step, start=2, interval=3, times=4).r_phys(SHAPE) for step in range(20)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == 1
    assert 0.3 < sizes[-1] <= 0.4


def test_blind_skipping() -> None:
    assert evenly_spaced_plan(TINY, 0.52).keep.nonzero().flatten().tolist() == [0, 2, 4, 7, 9, 11]
    assert evenly_spaced_plan(TINY, 0.52, "first").keep.nonzero().flatten().tolist() == [0, 1, 2, 3, 4, 5]
    with pytest.raises(ValueError, match="order must be"):
        evenly_spaced_plan(TINY, 0.5, "last")


def loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(logits, labels)


def test_taylor_scores_by_hand() -> None:
    model = vit()
    images, labels = torch.randn(6, 1, 8, 8), torch.randint(5, (6,))
    batches = [(images[:3], labels[:3]), (images[3:], labels[3:])]
    found = taylor_scores(model, batches, loss)
    expected = torch.zeros(3, 32)
    for x, y in batches:
        model.zero_grad()
        loss(model(x), y).backward()
        for layer, block in enumerate(model.blocks):
            expected[layer] += (block.mlp.fc2.weight.grad * block.mlp.fc2.weight).sum(0).abs() / 2
    assert torch.allclose(found.neurons, expected, rtol=1e-4, atol=1e-7)
    assert found.dims.shape == (3, 4, 4)
    with pytest.raises(ValueError, match="at least one batch"):
        taylor_scores(model, [], loss)


def test_saliency_plan_keeps_the_same_share_everywhere() -> None:
    model = vit()
    shape = ViTShape.from_timm(model)
    plan = saliency_plan(model, torch.randn(6, 1, 8, 8), torch.randint(5, (6,)), loss, 0.5)
    assert 0 <= 0.5 - plan.r_phys(shape) < 0.01
    half = half_scores(shape, torch.rand(3, 4), torch.rand(3, 32), 0.5)
    assert half.heads.sum(-1).tolist() == [2, 2, 2]
    assert half.neurons.sum(-1).tolist() == [16, 16, 16]


def test_unstructured_masks() -> None:
    weights = prunable_weights(vit())
    assert not any(name.startswith("head") for name in weights)
    masks = weight_masks({name: weight.abs() for name, weight in weights.items()}, 0.6)
    total = sum(weight.numel() for weight in weights.values())
    assert sum(int(mask.sum()) for mask in masks.values()) == total - int(0.6 * total)
    threshold = max(float(weight[~masks[name]].abs().max()) for name, weight in weights.items())
    assert threshold <= min(float(weight[masks[name]].abs().min()) for name, weight in weights.items() if masks[name].any())
    tied = weight_masks({"a": torch.ones(2), "b": torch.ones(2)}, 0.5)
    assert (tied["a"].tolist(), tied["b"].tolist()) == ([False, False], [True, True])
    with pytest.raises(ValueError, match="sparsity must be in"):
        weight_masks({"a": torch.ones(2)}, 1.0)


def test_one_shot_scores_are_of_columns() -> None:
    model = vit()
    scores = unit_scores(model)
    weight = model.blocks[1].attn.proj.weight
    assert float(scores.dims[1, 2, 3]) == pytest.approx(float(weight[:, 11].square().sum()), rel=1e-5)
    assert one_shot_plan(ViTShape.from_timm(model), scores, 0.5).r_phys(ViTShape.from_timm(model)) <= 0.5


@pytest.mark.parametrize("shape", [SHAPE, UNEQUAL, TINY])
def test_a_plan_that_costs_its_budget_exactly_keeps_every_unit(shape: ViTShape) -> None:
    for seed in range(60):
        plan = ragged(shape, seed)
        fitted = fit_to_budget(plan, shape, scores_of(shape, seed), plan.r_phys(shape))
        assert fitted.macs(shape) == plan.macs(shape), seed


@pytest.mark.parametrize("shape", [SHAPE, UNEQUAL, TINY])
def test_the_smallest_budget_that_can_be_reached_is_reached(shape: ViTShape) -> None:
    for prune, skip in itertools.product((True, False), repeat=2):
        require_reachable(shape, reachable_macs(shape, prune=prune, skip=skip) / shape.full_macs, prune=prune, skip=skip)


@pytest.mark.parametrize("budget", [math.nan, math.inf, 5.0, -1.0, 0.0, "0.5", None])
def test_every_planner_refuses_what_is_no_budget(budget: Any) -> None:
    plan, scores = CompressionPlan.identity(SHAPE), scores_of(SHAPE)
    planners: list[Callable[[], Any]] = [
        lambda: fit_to_budget(plan, SHAPE, scores, budget),
        lambda: fill_blocks(plan, SHAPE, scores, budget),
        lambda: fit_blocks(plan, SHAPE, torch.ones(4), budget),
        lambda: uniform_plan(SHAPE, scores, budget),
        lambda: one_shot_plan(SHAPE, scores, budget),
        lambda: evenly_spaced_plan(SHAPE, budget),
    ]
    for planner in planners:
        with pytest.raises((TypeError, ValueError), match="budget") as error:
            planner()
        assert len(str(error.value)) < 100


def test_scores_of_another_shape_are_refused_by_name() -> None:
    plan, scores = CompressionPlan.identity(SHAPE), scores_of(SHAPE)
    with pytest.raises(ValueError, match=r"scores of neurons must be \(4, 12\)"):
        fit_to_budget(plan, SHAPE, UnitScores(scores.dims, scores.neurons[:, :3], None), 0.5)
    with pytest.raises(ValueError, match=r"preferences must be \(4,\)"):
        fit_blocks(plan, SHAPE, torch.ones(3), 0.5)
