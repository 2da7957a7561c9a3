"""Re-attention: what it computes by hand, what it costs, where it cannot go."""

from __future__ import annotations

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from atlas.methods.diverse_vit.reattention import ReAttention, apply_reattention


def small() -> VisionTransformer:
    return VisionTransformer(img_size=8, patch_size=4, in_chans=1, embed_dim=12, depth=2, num_heads=3, num_classes=5)


def test_one_map_is_mixed_and_normalised_over_heads() -> None:
    layer = ReAttention(2, 0.0).eval()
    with torch.no_grad():
        layer.mix.weight.copy_(torch.tensor([[0.0, 2.0], [1.0, 1.0]]).view(2, 2, 1, 1))
        layer.mix.bias.zero_()
    layer.norm.running_var.fill_(4.0)
    layer.norm.eps = 0.0
    maps = torch.rand(3, 2, 4, 4)
    expected = torch.stack([2 * maps[:, 1], maps[:, 0] + maps[:, 1]], 1) / 2
    assert torch.allclose(layer(maps), expected)


def test_a_network_with_the_identity_as_mixing_is_the_one_before() -> None:
    model, images = small().eval(), torch.rand(2, 1, 8, 8)
    with torch.no_grad():
        before = model(images)
        apply_reattention(model)
        for block in model.blocks:
            block.attn.attn_drop.mix.weight.copy_(torch.eye(3).view(3, 3, 1, 1))
            block.attn.attn_drop.mix.bias.zero_()
            block.attn.attn_drop.norm.eps = 0.0
        assert torch.allclose(model.eval()(images), before, atol=1e-6)
        model.blocks[0].attn.attn_drop.mix.weight.mul_(2)
        assert not torch.allclose(model(images), before, atol=1e-4)


def test_it_adds_a_matrix_a_bias_and_a_norm_per_layer() -> None:
    plain = sum(parameter.numel() for parameter in small().parameters())
    mixed = sum(parameter.numel() for parameter in apply_reattention(small()).parameters())
    assert mixed - plain == 2 * 3 * (3 + 3)


@pytest.mark.parametrize(("depth", "published"), [(16, 24.5e6), (24, 36.3e6), (32, 48.1e6)])
def test_deepvits_have_their_published_sizes(depth: int, published: float) -> None:
    """DeepViT-16, -24 and -32 of the authors' repository: width 384, 12 heads, and neurons three times as wide."""
    with torch.device("meta"):  # shapes and no arithmetic
        model = VisionTransformer(embed_dim=384, depth=depth, num_heads=12, mlp_ratio=3)
        assert sum(parameter.numel() for parameter in apply_reattention(model).parameters()) == pytest.approx(published, rel=0.01)


def test_it_goes_in_once_and_into_plain_attentions_alone() -> None:
    model = apply_reattention(small())
    with pytest.raises(ValueError, match="block 0 has re-attention already"):
        apply_reattention(model)
    model.blocks[1].attn = torch.nn.Identity()
    with pytest.raises(ValueError, match="block"):
        apply_reattention(model)
