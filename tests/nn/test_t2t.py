"""T2T-ViT: the size and cost that its paper prints, its linear attention, and the methods on its blocks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from atlas.methods.anti_oversmoothing import apply_attnscale, apply_featscale
from atlas.nn.counts import forward_flops
from atlas.nn.t2t import Performer, T2TViT, sinusoids, t2t_vit_14


def test_size_and_cost_of_the_paper() -> None:
    """21.5 M parameters and 4.8 G multiply-accumulates at 224 pixels, within one percent (Table 1 of the paper)."""
    model = t2t_vit_14().eval()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert parameters == 21_545_550
    assert parameters == pytest.approx(21.5e6, rel=0.01)
    with torch.no_grad():
        macs = forward_flops(model, torch.randn(1, 3, 224, 224)) / 2
    assert macs == pytest.approx(4.8e9, rel=0.01)
    assert model.patch_embed.macs == pytest.approx(0.3e9, rel=0.01)
    assert model.patch_embed.num_patches == 196


def test_random_features_estimate_softmax_attention() -> None:
    """With many of them, φ(q)ᵀφ(k) is exp(qᵀk), and the mixture is that of softmax attention without a scale."""
    torch.manual_seed(0)
    performer = Performer(12, 8, 8, dropout=0.0).double().eval()
    query, key = 0.15 * torch.randn(2, 1, 5, 8, dtype=torch.float64)

    found = features_of(performer, query, key, 800)
    assert torch.allclose(found, (query @ key.transpose(1, 2)).exp(), rtol=0.1)
    assert performer(torch.randn(2, 5, 12, dtype=torch.float64)).shape == (2, 5, 8)


def features_of(performer: Performer, query: Tensor, key: Tensor, count: int) -> Tensor:
    """The mean of φ(q)ᵀφ(k) over many draws of the random directions."""
    total = torch.zeros(1, query.shape[1], key.shape[1], dtype=query.dtype)
    random = torch.Generator().manual_seed(1)
    for _ in range(count):
        with torch.no_grad():
            performer.directions.copy_(torch.randn(performer.directions.shape, generator=random))
        total += performer.positive(query) @ performer.positive(key).transpose(1, 2)
    return total / count


def test_positions_are_fixed_sinusoids() -> None:
    model = T2TViT(img_size=32, depth=1, num_classes=3)
    assert not model.pos_embed.requires_grad
    table = sinusoids(5, 8)[0]
    assert torch.allclose(table[:, 0], torch.arange(5.0).sin())
    assert torch.allclose(table[:, 1], torch.arange(5.0).cos())
    assert torch.equal(model.pos_embed[:, :5], sinusoids(5, 384))


@pytest.mark.parametrize("apply", [apply_attnscale, apply_featscale])
def test_methods_act_on_its_blocks(apply) -> None:  # type: ignore[no-untyped-def]
    model = T2TViT(img_size=32, embed_dim=32, depth=2, num_heads=2, num_classes=3).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        before = model(images)
        assert torch.equal(apply(model)(images), before)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(images).isfinite().all()
    with pytest.raises(ValueError, match=r"images of \(48, 48\) pixels, where the model was built for \(32, 32\)"):
        model(torch.randn(1, 3, 48, 48))
