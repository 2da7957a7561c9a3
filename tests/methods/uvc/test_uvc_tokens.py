"""DynamicViT: masked attention, decisions and their gradients, tokens that are gone, and what that costs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.methods.uvc.test_uvc_entry import short, trained
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from atlas.harness.files import read_tensors
from atlas.methods.uvc import InfeasibleBudgetError, UnsupportedArchitectureError, ViTShape
from atlas.methods.uvc.tokens import (
    TokenSelector,
    default_places,
    masked_softmax,
    ratio_for_budget,
    ratio_loss,
    select_tokens,
    selective_macs,
    selectors_of,
    token_loss,
)
from atlas.nn.counts import forward_flops, parameter_count
from atlas.nn.ranks import Ranks
from atlas.settings import merge

SMALL = ViTShape(12, 6, 64, 384, 1536, 197, 196, 16, 3)


def vit(**changes: Any) -> Any:
    torch.manual_seed(0)
    sizes = {"img_size": 8, "patch_size": 2, "in_chans": 1, "num_classes": 5, "embed_dim": 16, "depth": 4, "num_heads": 4}
    model = VisionTransformer(**{**sizes, "mlp_ratio": 2, "weight_init": "jax", **changes})
    torch.nn.init.normal_(model.head.weight)  # 0 at first: every answer would be the same
    return model.eval()


def images(count: int = 3) -> torch.Tensor:
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(2))


def test_masked_attention_is_attention_over_the_kept_tokens_and_ones_own() -> None:
    logits = torch.randn(2, 3, 5, 5, dtype=torch.double, requires_grad=True)
    kept = torch.tensor([[1.0, 0, 1, 1, 0], [1, 1, 1, 1, 1]], dtype=torch.double, requires_grad=True)
    maps = masked_softmax(logits, kept)
    seen = (kept[:, None, None].bool() | torch.eye(5).bool()).expand_as(logits)
    assert torch.allclose(maps, logits.masked_fill(~seen, -torch.inf).softmax(-1), atol=1e-5)
    assert torch.allclose(maps.sum(-1), torch.ones(2, 3, 5, dtype=torch.double))
    assert torch.autograd.gradcheck(masked_softmax, (logits, kept))


def test_a_ratio_of_one_is_the_dense_model() -> None:
    dense = vit()
    whole = select_tokens(dense, 1.0)
    assert torch.equal(whole.eval()(images()), dense(images()))
    whole.train()
    for selector in selectors_of(whole):  # certain to keep
        torch.nn.init.zeros_(selector.predict[-1].weight)
        selector.predict[-1].bias.data = torch.tensor([50.0, -50.0])
    assert torch.allclose(whole(images()), dense(images()), atol=1e-4)


def test_dropping_is_masking() -> None:
    """With certain predictors, what evaluation drops changes nothing of what masked training computes."""
    model = select_tokens(vit(drop_path_rate=0), 0.5, [1, 2], torch.Generator().manual_seed(0))
    seen: list[torch.Tensor] = []

    class Ranked(TokenSelector):
        """Keeps the patches with the largest first entry of those that are still there, for certain."""

        def forward(self, patches: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
            worth = patches[..., 0].masked_fill(kept == 0, -torch.inf)
            chosen = torch.zeros_like(worth).scatter(1, worth.topk(self.count).indices, 1.0)
            seen.append(chosen)
            return torch.stack((100 * chosen - 50, 50 - 100 * chosen), -1).log_softmax(-1)

    for selector in selectors_of(model):
        selector.__class__ = Ranked
    expected = model.eval()(images())
    assert [part.shape[1] for part in seen] == [16, 8]
    masked = model.train()(images())
    assert torch.allclose(masked, expected, atol=1e-4)
    assert [part.sum(1).tolist() for part in model.blocks.decisions] == [[8.0] * 3, [4.0] * 3]


def test_decisions_are_hard_shrink_and_have_gradients() -> None:
    model = select_tokens(vit(), 0.6).train()
    torch.manual_seed(1)
    model(images(8)).square().sum().backward()
    first, second, third = model.blocks.decisions
    assert set(torch.cat((first, second, third)).unique().tolist()) == {0.0, 1.0}
    assert (second <= first).all()
    assert (third <= second).all()
    assert third.sum() < first.sum()
    assert all(parameter.grad is not None for selector in selectors_of(model) for parameter in selector.parameters())
    assert next(selectors_of(model)).embed[1].weight.grad.abs().sum() > 0


def test_a_predictor_draws_as_likely_as_it_says() -> None:
    selector = TokenSelector(8, 0.5, 4)
    torch.nn.init.zeros_(selector.predict[-1].weight)
    selector.predict[-1].bias.data = torch.tensor([1.0, 0.0])
    torch.manual_seed(0)
    kept = selector.decide(torch.randn(2000, 20, 8), torch.ones(2000, 20))
    assert kept.mean().item() == pytest.approx(torch.sigmoid(torch.tensor(1.0)).item(), abs=0.01)


@pytest.mark.parametrize("places", [None, (1,), (0, 3)])
def test_dropped_tokens_are_counted_as_dropped(places: tuple[int, ...] | None) -> None:
    dense = vit()
    shape = ViTShape.from_timm(dense)
    model = select_tokens(dense, 0.55, places)
    assert forward_flops(model, images()) == 2 * (selective_macs(shape, 0.55, places) + 16 * 5)
    assert forward_flops(model, images()) < forward_flops(dense, images()) + 2 * 16 * 440 * 3


def test_counts_of_deit_s_are_the_published_ones() -> None:
    """0.7: 2.9 GMACs, which leaves out the predictors (0.10); predictors have 0.72 million parameters."""
    assert default_places(12) == (3, 6, 9)
    predictor = 384**2 + 384 * 192 + 192 * 96 + 2 * 96
    without = selective_macs(SMALL, 0.7) - (196 + 137 + 96) * predictor
    assert without == pytest.approx(2.9e9, rel=0.01)
    assert parameter_count(TokenSelector(384, 0.7, 196)) * 3 + 22_050_664 == 22_774_414


def test_the_ratio_follows_from_the_budget() -> None:
    ratio = ratio_for_budget(SMALL, 0.5)
    left = selective_macs(SMALL, ratio) / SMALL.full_macs
    assert 0 <= 0.5 - left < 0.01
    assert ratio_for_budget(SMALL, 1.0) < 1, "predictors cost something"
    with pytest.raises(InfeasibleBudgetError, match=r"budget 0.2 is below 0.27"):
        ratio_for_budget(SMALL, 0.2)


def test_losses_by_hand() -> None:
    kept = torch.tensor([[1.0, 0, 1, 0], [1, 1, 1, 0]])
    assert ratio_loss([kept], [0.5]).item() == pytest.approx((0 + 0.25**2) / 2)
    tokens, wanted = torch.zeros(2, 4, 3), torch.ones(2, 4, 3)
    wanted[0, 1] = 100  # dropped
    assert token_loss(tokens, wanted, kept).item() == pytest.approx(1)
    assert token_loss(tokens, wanted, torch.zeros(2, 4)).item() == 0


class Counted(Ranks):
    """Two ranks whose numbers have this mean."""

    size = 2

    def __init__(self, mean: float) -> None:
        self.value = mean

    def mean(self, value: Tensor) -> Tensor:
        return torch.full_like(value, self.value)


def test_ranks_that_keep_different_numbers_of_tokens_have_the_loss_of_the_whole_batch() -> None:
    """Their mean is it, and so are the means of their gradients; also where none is kept."""
    random = torch.Generator().manual_seed(0)
    tokens, wanted = (torch.randn(4, 5, 3, dtype=torch.float64, generator=random) for _ in range(2))
    tokens.requires_grad_()
    for kept in (torch.tensor([[1.0] * 5, [1, 1, 0, 1, 1], [0, 0, 1, 0, 0], [0] * 5]), torch.zeros(4, 5)):
        whole = token_loss(tokens, wanted, kept)
        ranks = Counted(float(kept.sum()) / 2)
        halves = [token_loss(tokens[own], wanted[own], kept[own], ranks) for own in (slice(2), slice(2, 4))]
        assert sum(halves).item() / 2 == pytest.approx(whole.item(), rel=1e-14)
        (expected,), (found,) = (torch.autograd.grad(loss, tokens) for loss in (whole, sum(halves) / 2))
        assert torch.allclose(found, expected, rtol=1e-14, atol=0)


def test_double_precision_stays_double() -> None:
    model = select_tokens(vit(), 0.5).double().train()
    model(images().double())
    assert {kept.dtype for kept in model.blocks.decisions} == {torch.float64}
    patches = torch.rand(2, 4, model.embed_dim, dtype=torch.float64)
    assert next(selectors_of(model))(patches, torch.ones(2, 4)).dtype == torch.float64


def test_what_reads_tokens_that_may_be_dropped_is_refused() -> None:
    with pytest.raises(UnsupportedArchitectureError, match="global_pool: avg"):
        select_tokens(vit(global_pool="avg", class_token=False), 0.5)
    with pytest.raises(UnsupportedArchitectureError, match=r"blocks.0.attn: SelectiveAttention"):
        select_tokens(select_tokens(vit(), 0.5, [0]), 0.5)
    with pytest.raises(ValueError, match="ascending indices of the 4 blocks"):
        select_tokens(vit(), 0.5, [1, 4])


def test_it_can_be_exported_for_other_runtimes() -> None:
    model = select_tokens(vit(), 0.5).eval()
    program = torch.export.export(model, (images(),))
    assert torch.allclose(program.module()(images()), model(images()), atol=1e-6)


@pytest.mark.slow
def test_the_row_trains_slowly_behind_its_predictors_and_comes_back(workspace: Path) -> None:
    run = short(workspace, "dynamic-vit", budget=0.8, epochs=2, frozen_epochs=1, learning_rate=1e-2, backbone_rate=0.1)
    protocol = merge(run.protocol, {"backbone": {"patch_size": 2}})
    run = replace(run, protocol=protocol, needs={"dense": replace(run.needs["dense"], protocol=protocol)})
    metrics = trained(run)
    assert 0 <= 0.8 - metrics["r_phys"] < 0.03
    assert metrics["forward_flops"] == 2 * (metrics["macs"] + 32 * 10)
    before, after = read_tensors(run.checkpoint / "exported.safetensors"), read_tensors(run.weights)
    dense = read_tensors(run.needs["dense"].weights)
    moved = {name: float((after[name] - before[name]).abs().max()) for name in after}
    assert before["blocks.2.mlp.fc1.weight"].equal(dense["blocks.2.mlp.fc1.weight"])
    quick = max(change for name, change in moved.items() if ".selector." in name)
    slow = max(change for name, change in moved.items() if ".selector." not in name)
    assert 0 < slow < quick / 3
