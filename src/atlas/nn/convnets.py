"""Networks for small images, from settings: MLP, a small convolutional network, PreAct-ResNet, VGG-16, Wide ResNet.

Each takes pixels in [0, 1] and normalises them by its first layer, so that attacks act on pixels.

K. He et al., *Identity Mappings in Deep Residual Networks*, ECCV 2016; K. Simonyan, A. Zisserman, ICLR 2015, with batch
normalisation; S. Zagoruyko, N. Komodakis, *Wide Residual Networks*, BMVC 2016.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

STAGES = (64, 128, 256, 512)
VGG16 = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)
"""Widths of VGG-16's convolutions; 0 is a max-pool."""
VGG_PIXELS = 32
NARROW = 8
"""Input channels below which a projection that strides leaves pixels out by itself (:func:`left_out`)."""


def left_out(inputs: int, stride: int) -> int:
    """Stride with which a 1 × 1 convolution's input is thinned out before the convolution, which then has a stride of 1.

    It is 1, and the convolution strides itself, unless ``inputs`` channels are few: training such a narrow projection crashes
    in oneDNN's kernels for AVX2 (PyTorch 2.15), to which a study is held. The values are the same either way.
    """
    return stride if inputs < NARROW else 1


class Normalise(nn.Module):
    """(x − mean) ÷ std per channel, with constants; x is (batch, channels, height, width)."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != len(std) or any(value <= 0 for value in std):
            raise ValueError("mean and std must have one entry per channel, and std be above 0")
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Subtract the mean and divide by the deviation of every channel; images (batch, channels, height, width)."""
        return (x - self.mean) / self.std


class PreActBlock(nn.Module):
    """BN-ReLU-conv twice; the shortcut is a 1 × 1 convolution of the activated input where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        changes = stride != 1 or inputs != outputs
        self.left_out = left_out(inputs, stride)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride // self.left_out, bias=False) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        """(batch, inputs, height, width) to (batch, outputs, height ÷ stride, width ÷ stride)."""
        active = functional.relu(self.bn1(x))
        kept = x if self.shortcut is None else self.shortcut(active[..., :: self.left_out, :: self.left_out])
        return kept + self.conv2(functional.relu(self.bn2(self.conv1(active))))


class PreActResNet(nn.Module):
    """Pre-activation ResNet with basic blocks: a 3 × 3 stem without pooling, four stages, average pool, linear layer.

    Parameters
    ----------
    classes : int
        Number of outputs.
    channels : int
        Of the input.
    blocks : sequence of int
        Blocks per stage; (2, 2, 2, 2) is ResNet-18.
    scale : float
        Multiplies the widths 64, 128, 256, 512, rounded to whole channels.
    """

    def __init__(self, classes: int, channels: int = 3, blocks: Sequence[int] = (2, 2, 2, 2), scale: float = 1.0) -> None:
        super().__init__()
        widths = [max(1, round(width * scale)) for width in STAGES]
        self.conv1 = nn.Conv2d(channels, widths[0], 3, 1, 1, bias=False)
        layers: list[nn.Module] = []
        before = widths[0]
        for stage, (width, count) in enumerate(zip(widths, blocks, strict=True)):
            for index in range(count):
                layers.append(PreActBlock(before, width, 2 if stage and not index else 1))
                before = width
        self.blocks = nn.Sequential(*layers)
        self.bn = nn.BatchNorm2d(before)
        self.linear = nn.Linear(before, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, height, width) to logits (batch, classes)."""
        x = functional.relu(self.bn(self.blocks(self.conv1(x))))
        return self.linear(functional.adaptive_avg_pool2d(x, 1).flatten(1))


class VGG(nn.Module):
    """VGG-16 with batch normalisation for 32 × 32 pixels: convolutions with bias, and one linear layer."""

    def __init__(self, classes: int, channels: int = 3, scale: float = 1.0) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = channels
        for width in VGG16:
            if width:
                after = max(1, round(width * scale))
                layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
                before = after
            else:
                layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.linear = nn.Linear(before, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, 32, 32) to logits (batch, classes)."""
        _require_pixels(x, VGG_PIXELS, "VGG-16")
        return self.linear(self.features(x).flatten(1))


class WideResNet(nn.Module):
    """Wide ResNet of depth 6n + 4 for 32 × 32 pixels: widths 16, 16k, 32k, 64k; Kaiming initialisation by fan-out.

    Parameters
    ----------
    depth, widening : int
        34 and 10 are the paper's.
    """

    def __init__(self, classes: int, channels: int = 3, depth: int = 34, widening: float = 10) -> None:
        super().__init__()
        if (depth - 4) % 6:
            raise ValueError(f"depth must be 6n + 4, not {depth}")
        count = (depth - 4) // 6
        self.conv1 = nn.Conv2d(channels, 16, 3, 1, 1, bias=False)
        layers: list[nn.Module] = []
        before = 16
        for stage, base in enumerate((16, 32, 64)):
            width = max(1, round(base * widening))
            for index in range(count):
                layers.append(PreActBlock(before, width, 2 if stage and not index else 1))
                before = width
        self.blocks = nn.Sequential(*layers)
        self.bn = nn.BatchNorm2d(before)
        self.linear = nn.Linear(before, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, 32, 32) to logits (batch, classes)."""
        _require_pixels(x, VGG_PIXELS, "Wide ResNet")
        x = functional.avg_pool2d(functional.relu(self.bn(self.blocks(self.conv1(x)))), 8)
        return self.linear(x.flatten(1))


class MLP(nn.Module):
    """Fully connected layers with ReLU between them; images are flattened."""

    def __init__(self, classes: int, inputs: int, widths: Sequence[int]) -> None:
        super().__init__()
        sizes = [inputs, *widths, classes]
        self.layers = nn.ModuleList(nn.Linear(before, after) for before, after in pairwise(sizes))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, …) to logits (batch, classes)."""
        *hidden, last = self.layers
        x = x.flatten(1)
        for layer in hidden:
            x = functional.relu(layer(x))
        return last(x)


class SmallConvNet(nn.Sequential):
    """3 × 3 convolutions with batch normalisation, a 2 × 2 max-pool after each but the first, and a linear layer on the mean.

    Parameters
    ----------
    widths : sequence of int
        Channels of the convolutions.
    """

    def __init__(self, classes: int, channels: int = 1, widths: Sequence[int] = (16, 32)) -> None:
        layers: list[nn.Module] = []
        before = channels
        for index, width in enumerate(widths):
            layers += [nn.Conv2d(before, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            layers += [nn.MaxPool2d(2)] if index else []
            before = width
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, classes))


def _require_pixels(x: Tensor, pixels: int, name: str) -> None:
    if tuple(x.shape[-2:]) != (pixels, pixels):
        raise ValueError(f"{name} takes {pixels} × {pixels} pixels, not {x.shape[-2]} × {x.shape[-1]}")
