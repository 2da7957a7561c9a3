"""The resource function: published sizes, two cost conventions, and a gradient that is exact."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor

from atlas.methods.uvc import CompressionPlan, ViTShape, resource, resource_grad

TINY = ViTShape(12, 3, 64, 192, 768, 197, 196, 16, 3)
SMALL = ViTShape(12, 6, 64, 384, 1536, 197, 196, 16, 3)
BASE = ViTShape(12, 12, 64, 768, 3072, 197, 196, 16, 3)
UNEQUAL = ViTShape(3, (2, 4, 1), (6, 3, 8), 24, (10, 7, 16), 9, 8, 2, 1)


def nothing(shape: ViTShape) -> tuple[Tensor, Tensor]:
    return torch.zeros(shape.depth, 2, dtype=torch.double), torch.zeros(shape.depth, shape.widest[0], dtype=torch.double)


@pytest.mark.parametrize(
    ("shape", "full", "embed", "one"),
    [
        (TINY, 1_253_491_200, 0.0230567, 0.0814119),
        (SMALL, 4_598_498_304, 0.0125699, 0.0822858),
        (BASE, 17_563_060_224, 0.0065823, 0.0827848),
    ],
)
def test_published_sizes(shape: ViTShape, full: int, embed: float, one: float) -> None:
    s, r = nothing(shape)
    keep = torch.zeros(12, dtype=torch.double)
    assert shape.full_macs == full
    for cost in ("paper", "physical"):
        assert float(resource(shape, s, r, cost=cost)) == pytest.approx(1, abs=1e-12)
        assert float(resource(shape, s, r, keep, cost=cost)) == pytest.approx(embed, abs=1e-7)
    first = keep.index_fill(0, torch.tensor([0]), 1)
    assert float(resource(shape, s, r, first)) - embed == pytest.approx(one, abs=2e-7)
    assert shape.block_macs(0) / full == pytest.approx(one, abs=1e-7)


def test_shape_is_read_from_timm() -> None:
    with torch.device("meta"):
        assert ViTShape.from_timm(timm.create_model("deit_tiny_patch16_224")) == TINY
        distilled = ViTShape.from_timm(timm.create_model("deit_tiny_distilled_patch16_224"))
        larger = ViTShape.from_timm(timm.create_model("deit_tiny_patch16_224"), img_size=384)
    assert (distilled.tokens, distilled.patches) == (198, 196)
    assert (larger.tokens, larger.patches) == (577, 576)


@pytest.mark.parametrize(
    ("removed", "paper", "physical"),
    [
        ((0, 384, 0), 0.721908, 0.721908),
        ((1, 0, 0), 0.859747, 0.859747),
        ((0, 0, 32), 0.929572, 0.894810),
        ((1, 384, 32), 0.534703, 0.511528),
    ],
)
def test_table_of_deit_tiny(removed: tuple[int, int, int], paper: float, physical: float) -> None:
    s, r = nothing(TINY)
    s[:, 0], s[:, 1], r[:] = removed
    assert float(resource(TINY, s, r, cost="paper")) == pytest.approx(paper, abs=1e-6)
    assert float(resource(TINY, s, r)) == pytest.approx(physical, abs=1e-6)
    assert float(resource(TINY, s - 0.3 * (s > 0), r, cost="paper")) == pytest.approx(paper, abs=1e-6)


def random_removal(shape: ViTShape, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)

    def draw(*size: int) -> Tensor:
        return torch.rand(size, generator=random, dtype=torch.double)

    heads, dims, neurons = (torch.tensor(shape.per_block(name)) for name in ("heads", "head_dim", "mlp_dim"))
    s = torch.stack((draw(shape.depth) * (heads - 1), draw(shape.depth) * (neurons - 1)), -1).floor()
    r = (draw(shape.depth, shape.widest[0]) * (dims - 1)[:, None]).floor()
    r = r * shape.dims_exist()[:, :, 0]
    return s, r, draw(shape.depth), draw(shape.depth, shape.widest[0])


@pytest.mark.parametrize("shape", [TINY, UNEQUAL])
@pytest.mark.parametrize("seed", range(3))
def test_costs_agree_with_masks(shape: ViTShape, seed: int) -> None:
    s, r, _, scores = random_removal(shape, seed)
    plan = CompressionPlan.identity(shape)
    for layer in range(shape.depth):
        heads = shape.per_block("heads")[layer]
        gone = scores[layer, :heads].argsort()[: int(s[layer, 0])].tolist()
        for head in range(heads):
            plan.dims[layer, head, : int(r[layer, head])] = False
            if head in gone:
                plan.dims[layer, head] = False
        plan.neurons[layer, : int(s[layer, 1])] = False
    physical, paper = (resource(shape, s, r, None, scores, cost=cost) for cost in ("physical", "paper"))
    assert plan.r_phys(shape) == pytest.approx(float(physical), abs=1e-12)
    assert plan.r_paper(shape) == pytest.approx(float(paper), abs=1e-12)
    assert physical < paper
    assert float(resource(shape, s, 0 * r, None, scores, "paper")) == pytest.approx(float(resource(shape, s, 0 * r)), abs=1e-12)


@pytest.mark.parametrize("cost", ["physical", "paper"])
@pytest.mark.parametrize("shape", [TINY, UNEQUAL])
def test_gradient_is_the_difference_over_integer_steps(shape: ViTShape, cost: str) -> None:
    s, r, keep, scores = random_removal(shape, 5)
    ds, dr, dk = resource_grad(shape, s, r, keep, scores, cost)  # type: ignore[arg-type]

    def value(s: Tensor, r: Tensor, keep: Tensor) -> float:
        return float(resource(shape, s, r, keep, scores, cost))  # type: ignore[arg-type]

    now = value(s, r, keep)
    exist = shape.dims_exist()[:, :, 0]
    for layer in range(shape.depth):
        step = torch.zeros_like(s)
        step[layer, 1] = 1
        assert value(s + step, r, keep) - now == pytest.approx(float(ds[layer, 1]), abs=1e-12)
        step = torch.zeros_like(s)
        step[layer, 0] = 1
        heads_only = value(s + step, 0 * r, keep) - value(s, 0 * r, keep)
        assert heads_only == pytest.approx(float(ds[layer, 0]), abs=1e-12)
        assert now - value(s, r, keep.index_fill(0, torch.tensor([layer]), 0)) == pytest.approx(float(keep[layer] * dk[layer]))
        for head in range(shape.per_block("heads")[layer]):
            more = r.clone()
            more[layer, head] += 1
            assert value(s, more, keep) - now == pytest.approx(float(dr[layer, head]), abs=1e-12)
            assert value(s, more, keep) <= now
    assert not dr[~exist].any()
    assert (ds < 0).all()


def test_resource_is_affine_and_differentiable_in_keep() -> None:
    s, r, keep, scores = random_removal(TINY, 7)
    keep.requires_grad_()
    resource(TINY, s, r, keep, scores).backward()
    assert torch.allclose(keep.grad, resource_grad(TINY, s, r, keep, scores)[2])  # type: ignore[arg-type]
    low, high = (float(resource(TINY, s, r, torch.full((12,), k, dtype=torch.double), scores)) for k in (0.0, 1.0))
    assert float(resource(TINY, s, r, torch.full((12,), 0.5, dtype=torch.double), scores)) == pytest.approx((low + high) / 2)


def test_removed_heads_have_no_gradient_in_their_dims() -> None:
    s, r = nothing(TINY)
    s[:, 0] = 1
    scores = torch.tensor([[2.0, 1.0, 1.0]]).repeat(12, 1)  # equal scores: the lower index goes first
    dr = resource_grad(TINY, s, r, head_scores=scores)[1]
    assert (dr[:, 1] == 0).all()
    assert (dr[:, [0, 2]] < 0).all()


def test_wrong_arguments() -> None:
    s, r = nothing(TINY)
    with pytest.raises(ValueError, match="cost must be"):
        resource(TINY, s, r, cost="flops")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"s and r must be \(12, 2\)"):
        resource(TINY, s[:4], r)
    for ask in (resource, resource_grad):
        for keep in (torch.ones(3), torch.ones(12, 1), torch.ones(())):
            with pytest.raises(ValueError, match=r"keep must be \(12,\), not \("):
                ask(TINY, s, r, keep)
        for scores in (torch.ones(3), torch.ones(12, 4), torch.ones(1, 3)):
            with pytest.raises(ValueError, match=r"head_scores must be \(12, 3\), not \("):
                ask(TINY, s, r, head_scores=scores)
    with pytest.raises(ValueError, match="heads must be positive"):
        ViTShape(12, (3, 3), 64, 192, 768, 197, 196, 16, 3)
