"""The large optimizees of symbolic learning to optimize: ResNet-50 and -152 and MobileNetV2, torchvision's, for small images.

Images of 32 pixels would be a single place after torchvision's five strides. So the first layers keep the resolution, as CIFAR's
networks do: a ResNet's stem is a 3 × 3 convolution of stride 1 without pooling, and in MobileNetV2 the stem and the first block
of stride 2 have stride 1. Normalisation keeps no running statistics, and nothing is dropped, as a pure function can do neither.
"""

from __future__ import annotations

from functools import partial

from torch import nn
from torch.nn import functional

from atlas.l2o.optimizees import Examples, Optimizee, module_optimizee

BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
"""Bottleneck blocks per stage of ResNets by depth (He et al., CVPR 2016, Table 1)."""
GROUP_WIDTH = 64
FIRST_STRIDED_BLOCK = 2
"""Index, in MobileNetV2's layers, of the first block of stride 2, which has stride 1 here."""

stateless_norm = partial(nn.BatchNorm2d, track_running_stats=False)


def bottleneck_resnet_module(depth: int, width: int = 1, channels: int = 3, classes: int = 10) -> nn.Module:
    """Torchvision's ResNet of bottlenecks, ``width`` times as wide within them, with the stem of small images.

    Raises
    ------
    ValueError
        There is no ResNet of bottlenecks of that depth.
    """
    from torchvision.models.resnet import Bottleneck, ResNet

    if depth not in BLOCKS:
        raise ValueError(f"there is no ResNet of bottlenecks with {depth} layers; choose from {', '.join(map(str, BLOCKS))}")
    model = ResNet(
        Bottleneck, list(BLOCKS[depth]), num_classes=classes, width_per_group=GROUP_WIDTH * width, norm_layer=stateless_norm
    )
    model.conv1 = nn.Conv2d(channels, 64, 3, 1, 1, bias=False)
    model.maxpool = nn.Identity()
    return model


def bottleneck_resnet(
    depth: int = 50, width: int = 1, *, data: Examples, classes: int = 10, init: str = "default", name: str | None = None
) -> Optimizee:
    """ResNet-50, -101 or -152 with cross-entropy on small images; normalises with each batch's own statistics."""
    module = bottleneck_resnet_module(depth, width, data["train"][0].shape[1], classes)
    return module_optimizee(module, functional.cross_entropy, data, init, name=name or f"resnet{depth}")


def mobilenet_v2_module(width: float = 1.0, channels: int = 3, classes: int = 10) -> nn.Module:
    """Torchvision's MobileNetV2, whose first strides keep the resolution of small images."""
    from torchvision.models.mobilenetv2 import MobileNetV2

    model = MobileNetV2(num_classes=classes, width_mult=width, norm_layer=stateless_norm, dropout=0.0)
    stem = model.features[0][0]
    model.features[0][0] = nn.Conv2d(channels, stem.out_channels, 3, 1, 1, bias=False)
    model.features[FIRST_STRIDED_BLOCK].conv[1][0].stride = (1, 1)
    return model


def mobilenet_v2(
    width: float = 1.0, *, data: Examples, classes: int = 10, init: str = "default", name: str | None = None
) -> Optimizee:
    """MobileNetV2 with cross-entropy on small images; normalises with each batch's own statistics."""
    module = mobilenet_v2_module(width, data["train"][0].shape[1], classes)
    return module_optimizee(module, functional.cross_entropy, data, init, name=name or "mobilenet-v2")
