"""Counted operations against sums over layer shapes that were worked out by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

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
