"""The network's parts against other implementations and hand-made cases."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from atlas.methods.as_vit import Topology, build
from atlas.methods.as_vit.layout import Stage, fitting_split
from atlas.methods.as_vit.network import Merge, Stem, WindowAttention

SEED = Topology.parse("8,2,3|4,1,2|4,1,4|4,1,6|32")[0]


def stage(width: int, heads: int, grid: int, split: int) -> Stage:
    return Stage(4, grid, width, heads, width // heads, split, grid // split, 2, 1)


@pytest.mark.parametrize(("width", "heads"), [(24, 4), (22, 4)])
def test_global_window_attention_equals_timms_attention(width: int, heads: int) -> None:
    from timm.layers import Attention

    torch.manual_seed(0)
    own = WindowAttention(stage(width, heads, 4, 1)).double()
    theirs = Attention(width, heads, attn_head_dim=width // heads, dim_out=width, qkv_bias=True).double()
    theirs.qkv.load_state_dict(own.qkv.state_dict())
    theirs.proj.load_state_dict(own.proj.state_dict())
    tokens = torch.randn(3, 16, width, dtype=torch.float64)
    torch.testing.assert_close(own(tokens), theirs(tokens), rtol=1e-12, atol=1e-14)


def test_windows_of_one_token_give_the_projected_value() -> None:
    torch.manual_seed(0)
    attention = WindowAttention(stage(12, 3, 4, 4)).double()
    tokens = torch.randn(2, 16, 12, dtype=torch.float64)
    value = attention.qkv(tokens)[..., 24:]
    torch.testing.assert_close(attention(tokens), attention.proj(value))


def test_windows_do_not_see_each_other() -> None:
    torch.manual_seed(0)
    attention = WindowAttention(stage(8, 2, 4, 2)).double()
    tokens = torch.randn(1, 16, 8, dtype=torch.float64)
    changed = tokens.clone()
    changed[0, 0] += 1  # top left window: rows 0-1, columns 0-1 → tokens 0, 1, 4, 5
    moved = (attention(changed) - attention(tokens)).abs().sum(-1)[0] > 0
    assert moved.nonzero().flatten().tolist() == [0, 1, 4, 5]


def test_merge_of_two_is_space_to_depth_and_a_linear_map() -> None:
    torch.manual_seed(0)
    merge = Merge(2, 6, 10).double()
    tokens = torch.randn(2, 16, 6, dtype=torch.float64)
    image = tokens.transpose(1, 2).reshape(2, 6, 4, 4)
    blocks = functional.pixel_unshuffle(image, 2).flatten(2).transpose(1, 2)
    torch.testing.assert_close(merge(tokens), merge.reduction(merge.norm(blocks)))


@pytest.mark.parametrize("kernel", [2, 3, 4])
def test_merge_pads_left_and_right_as_specified(kernel: int) -> None:
    merge = Merge(kernel, 1, 1)
    merge.norm = nn.Identity()  # type: ignore[assignment]
    nn.init.ones_(merge.reduction.weight)
    image = torch.arange(1.0, 17.0).reshape(1, 1, 4, 4)
    left, right = (kernel - 2) // 2, (kernel - 1) // 2
    padded = functional.pad(image, (left, right, left, right))
    expected = functional.avg_pool2d(padded, kernel, 2) * kernel**2
    torch.testing.assert_close(merge(image.flatten(2).transpose(1, 2)), expected.flatten(2).transpose(1, 2))


def test_stem_splits_odd_padding_to_the_right() -> None:
    stem = Stem(1, 1, 7, 4)
    stem.norm = nn.Identity()  # type: ignore[assignment]
    image = torch.randn(1, 1, 8, 8)
    expected = functional.conv2d(functional.pad(image, (1, 2, 1, 2)), stem.proj.weight, stem.proj.bias, 4)
    torch.testing.assert_close(stem(image), expected.flatten(2).transpose(1, 2))


def test_features_are_the_mean_tokens_before_the_final_norm_and_logits_after_it() -> None:
    model = build(SEED, width=8, img_size=64, num_classes=5, generator=torch.Generator().manual_seed(0)).eval()
    images = torch.randn(2, 3, 64, 64)
    tokens = model.forward_features(images)
    assert tokens.shape == (2, 4, 64)
    torch.testing.assert_close(model(images), model.head(tokens.mean(1)))
    assert model.features(images).shape == (2, 64)
    assert not torch.allclose(model.features(images), tokens.mean(1))
    torch.testing.assert_close(model.forward_head(tokens, pre_logits=True), tokens.mean(1))


def test_initialisation_is_the_published_one_and_draws_from_its_generator_alone() -> None:
    state = torch.get_rng_state()
    model = build(SEED, width=32, img_size=32, generator=torch.Generator().manual_seed(1))
    assert torch.equal(torch.get_rng_state(), state)
    again = build(SEED, width=32, img_size=32, generator=torch.Generator().manual_seed(1))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    weights = torch.cat([m.weight.detach().flatten() for m in model.modules() if isinstance(m, nn.Linear)])
    assert float(weights.std()) == pytest.approx(0.02, rel=0.01)
    assert float(weights.abs().max()) < 0.15
    biases = [m.bias for m in model.modules() if isinstance(m, nn.Linear) and m.bias is not None]
    assert not any(bias.any() for bias in biases)
    stem = model.stem.proj
    bound = (3 * 8 * 8) ** -0.5
    for parameter in (stem.weight, stem.bias):
        assert parameter is not None
        assert float(parameter.detach().abs().max()) <= bound
    assert float(stem.weight.detach().var()) == pytest.approx(bound**2 / 3, rel=0.05)


def test_drop_path_grows_from_zero_to_its_rate() -> None:
    model = build(SEED, width=8, img_size=32, depths=(1, 2, 1, 1), drop_path=0.2)
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for level in model.stages for block in level.blocks]
    assert rates == pytest.approx([0, 0.05, 0.1, 0.15, 0.2])


def test_refuses_images_of_another_size() -> None:
    with pytest.raises(ValueError, match="64 × 64 pixels"):
        build(SEED, width=8, img_size=32)(torch.zeros(1, 3, 64, 64))


def test_fitting_split_is_the_largest_divisor_not_above() -> None:
    assert [fitting_split(grid, split) for grid, split in ((14, 8), (7, 4), (9, 4), (1, 8), (8, 4))] == [7, 1, 3, 1, 4]
