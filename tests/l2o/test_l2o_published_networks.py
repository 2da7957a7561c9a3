"""The large optimizees have the published sizes, look at small images at full resolution, and train."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from atlas.l2o import Examples, bottleneck_resnet, mobilenet_v2
from atlas.l2o.published_networks import bottleneck_resnet_module, mobilenet_v2_module

STEM = 3 * 64 * (7**2 - 3**2)  # weights by which the stem of small images is smaller


def size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(("depth", "published"), [(50, 25_557_032), (152, 60_192_808)])
def test_resnets_have_torchvisions_published_size_but_for_the_stem(depth: int, published: int) -> None:
    assert size(bottleneck_resnet_module(depth, classes=1000)) == published - STEM


def test_mobilenet_has_torchvisions_published_size() -> None:
    assert size(mobilenet_v2_module(classes=1000)) == 3_504_872


@pytest.mark.parametrize(("depth", "published"), [(50, 4.09e9), (152, 11.51e9)])
def test_resnets_have_torchvisions_published_macs_but_for_the_stem(depth: int, published: float) -> None:
    """After the stem an image of 56 pixels is here what one of 224 is there."""
    stem, small_stem = 3 * 64 * 7**2 * 112**2, 3 * 64 * 3**2 * 56**2
    macs = multiply_accumulates(bottleneck_resnet_module(depth, classes=1000), 56)
    assert macs - small_stem + stem == pytest.approx(published, rel=0.01)


def test_mobilenet_has_torchvisions_published_macs_but_for_the_first_layers() -> None:
    """With 56 pixels instead of 224, all but the stem, the first block and the widening of the second see what they see there."""
    stem = 3 * 32 * 9
    first = 32 * 9 + 32 * 16
    widening = 16 * 96
    there = (stem + first + widening) * 112**2
    here = (stem + first + widening) * 56**2
    macs = multiply_accumulates(mobilenet_v2_module(classes=1000), 56)
    assert macs - here + there == pytest.approx(0.30e9, rel=0.01)


def multiply_accumulates(module: nn.Module, side: int) -> float:
    """Of one image of that many pixels a side."""
    with FlopCounterMode(display=False) as counter:
        module.to("meta")(torch.zeros(1, 3, side, side, device="meta"))
    return counter.get_total_flops() / 2


def test_small_images_are_seen_at_full_resolution_first() -> None:
    images = torch.zeros(2, 3, 32, 32)
    resnet, mobile = bottleneck_resnet_module(50), mobilenet_v2_module()
    sides = {}
    resnet.layer1.register_forward_hook(lambda _, __, out: sides.update(first=out.shape[-1]))
    resnet.layer4.register_forward_hook(lambda _, __, out: sides.update(last=out.shape[-1]))
    mobile.features.register_forward_hook(lambda _, __, out: sides.update(mobile=out.shape[-1]))
    with torch.no_grad():
        assert resnet(images).shape == mobile(images).shape == (2, 10)
    assert sides == {"first": 32, "last": 4, "mobile": 4}
    assert [*resnet.buffers(), *mobile.buffers()] == []


@pytest.mark.parametrize("make", [lambda data: bottleneck_resnet(data=data), lambda data: mobilenet_v2(data=data)])
def test_a_step_against_the_gradient_lowers_the_loss(make: object) -> None:
    gen = torch.Generator().manual_seed(0)
    split = (torch.rand(8, 3, 16, 16, generator=gen), torch.arange(8) % 10)
    optimizee = make(Examples({"train": split, "val": split, "test": split}, 8))  # type: ignore[operator]
    theta = optimizee.init(1, gen).requires_grad_()
    batch = split[0][None], split[1][None]
    loss = optimizee.losses(theta, batch).sum()
    (gradient,) = torch.autograd.grad(loss, theta)
    assert torch.isfinite(gradient).all()
    step = 1e-2 * gradient / gradient.norm()
    assert optimizee.losses(theta.detach() - step, batch).item() < loss.item()


def test_a_depth_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="no ResNet of bottlenecks with 20 layers; choose from 50, 101, 152"):
        bottleneck_resnet_module(20)
