"""Counted operations against sums over layer shapes that were worked out by hand."""

from __future__ import annotations

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.nn import functional

from atlas.nn.convnets import VGG, PreActResNet, WideResNet
from atlas.nn.counts import are_flops_counted, counted_flops, forward_flops

BATCH, SIDE = 3, 10


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("given", [True, False])
def test_a_convolution_costs_as_much_for_each_of_its_gradients_as_forward(groups: int, given: bool) -> None:
    layer = nn.Conv2d(8, 12, 3, stride=2, padding=1, groups=groups, bias=False)
    images = torch.ones(BATCH, 8, SIDE, SIDE, requires_grad=given)
    with counted_flops() as counter:
        layer(images).sum().backward()
    # 5 × 5 places, 12 outputs of 8 ÷ groups channels and 9 taps each; forward, gradient of the weight, gradient of the input
    once = 2 * BATCH * 25 * 12 * (8 // groups) * 9
    assert counter.get_total_flops() == once * (3 if given else 2)


@pytest.mark.parametrize("groups", [1, 2])
def test_a_transposed_convolution_meets_every_weight_at_every_place_of_its_input(groups: int) -> None:
    layer = nn.ConvTranspose2d(8, 12, 3, stride=2, groups=groups, bias=False)
    images = torch.ones(BATCH, 8, SIDE, SIDE, requires_grad=True)
    with counted_flops() as counter:
        layer(images).sum().backward()
    assert counter.get_total_flops() == 3 * 2 * BATCH * SIDE**2 * 8 * (12 // groups) * 9


def test_products_that_are_added_in_place_count() -> None:
    one, several = torch.zeros(2, 5), torch.zeros(3, 2, 5)
    with counted_flops() as counter:
        one.addmm_(torch.ones(2, 4), torch.ones(4, 5))
        several.baddbmm_(torch.ones(3, 2, 4), torch.ones(3, 4, 5))
    assert counter.get_total_flops() == 2 * (2 * 4 * 5) + 2 * (3 * 2 * 4 * 5)


class Padding(nn.Module):
    """Attention that is padded to be faster, unless its operations are counted."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        value = x[..., :2] if are_flops_counted() else functional.pad(x[..., :2], (0, 6))
        return functional.scaled_dot_product_attention(x, x, value)


def test_what_is_padded_for_speed_alone_does_not_count() -> None:
    tokens, width, kept = 5, 8, 2
    assert forward_flops(Padding(), torch.ones(1, 1, tokens, width)) == 2 * tokens**2 * (width + kept)
    assert not are_flops_counted()


# published sizes, on tensors that hold no numbers


def step_flops(model: nn.Module, images: torch.Tensor) -> float:
    """Operations of a forward pass and of the gradients of all weights."""
    with counted_flops() as counter:
        model(images).sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize(("width", "heads", "published"), [(192, 3, 1.3e9), (384, 6, 4.6e9), (768, 12, 17.6e9)])
def test_a_step_of_deit(width: int, heads: int, published: float) -> None:
    with torch.device("meta"):
        model = VisionTransformer(embed_dim=width, num_heads=heads)
        images = torch.ones(2, 3, 224, 224)
    patch, head = 196 * 3 * 16**2 * width, width * 1000
    linear, products = 12 * 197 * 12 * width**2, 12 * 2 * 197**2 * width
    forward = patch + linear + products + head
    assert forward == pytest.approx(published, rel=0.05)
    assert forward_flops(model, images) == 2 * forward
    # images need no gradient; whether a kernel computes queries with keys once more is its own affair
    least = 2 * 2 * (2 * patch + 3 * (linear + products + head))
    assert least <= step_flops(model, images) <= 1.02 * least


def blocks_macs(stages: list[tuple[int, int, int]], side: int, before: int) -> int:
    """Multiply-accumulates of pre-activation blocks; every stage has a number of blocks, channels and a stride."""
    total = 0
    for count, width, stride in stages:
        side //= stride
        first = 9 * before * width + 9 * width**2 + (before * width if stride > 1 or before != width else 0)
        total += side**2 * (first + (count - 1) * 2 * 9 * width**2)
        before = width
    return total


def test_a_step_of_the_convnets() -> None:
    with torch.device("meta"):
        images = torch.ones(2, 3, 32, 32)
        networks = [PreActResNet(10), WideResNet(10), VGG(10)]
    stem = 32**2 * 27
    resnet = blocks_macs([(2, 64, 1), (2, 128, 2), (2, 256, 2), (2, 512, 2)], 32, 64) + 512 * 10
    wide = blocks_macs([(5, 160, 1), (5, 320, 2), (5, 640, 2)], 32, 16) + 640 * 10
    vgg, side, before = 512 * 10, 32, 64
    for width in (64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512):
        side, vgg = (side, vgg + side**2 * 9 * before * width) if width else (side // 2, vgg)
        before = width or before
    for model, first, rest in zip(networks, (64, 16, 64), (resnet, wide, vgg), strict=True):
        assert forward_flops(model, images) == 2 * (stem * first + rest)
        assert step_flops(model, images) == 2 * 2 * (2 * stem * first + 3 * rest)
