"""The networks of the paper and of the demo, parameterised by a width in (0, 1].

Every hidden channel count is multiplied by the width; input channels and classes never are. Weights and biases of
convolutions and linear layers are drawn from U(±1/√fan_in), the usual default of torch, from the generator given.
"""

from __future__ import annotations

import math
from functools import partial
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from atlas.methods.split_mix.norms import NormSpec
from atlas.nn.convnets import left_out

TOLERANCE = 1e-9


class WidthFactory(Protocol):
    """Makes a network of any width: ``factory(0.125, norm=NormSpec())``.

    Networks of all widths have the same layers under the same names, and differ in the sizes of hidden dimensions only.
    """

    def __call__(self, width: float, *, norm: NormSpec, generator: torch.Generator | None = None) -> nn.Module:
        """Return a freshly initialised network; draws come from ``generator`` where there is one."""
        ...


def scaled(channels: int, width: float, layer: str) -> int:
    """Return ``channels × width``.

    Raises
    ------
    ValueError
        The width is not in (0, 1], or the product is not a whole number; names the layer.
    """
    if not 0 < width <= 1:
        raise ValueError(f"width must be in (0, 1], not {width}")
    exact = channels * width
    if abs(exact - round(exact)) > TOLERANCE * channels or round(exact) < 1:
        raise ValueError(f"{layer} has {channels} channels, and {channels} × {width:g} = {exact:g} is not a whole number")
    return round(exact)


@torch.no_grad()
def initialise(model: nn.Module, generator: torch.Generator | None) -> None:
    """Draw every convolution and linear layer from U(±1/√fan_in), weights and biases alike."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            bound = 1 / math.sqrt(module.weight[0].numel())
            for parameter in module.parameters(recurse=False):
                parameter.uniform_(-bound, bound, generator=generator)


class MLP(nn.Module):
    """Hidden layers with batch norm and ReLU, and a linear classifier: the demo's network.

    Input of any shape (batch, …) with ``inputs`` entries; ``hidden`` are the sizes at width 1.
    """

    def __init__(
        self,
        width: float = 1.0,
        *,
        norm: NormSpec = NormSpec(),
        generator: torch.Generator | None = None,
        inputs: int = 64,
        hidden: tuple[int, ...] = (256, 128),
        classes: int = 10,
    ) -> None:
        super().__init__()
        sizes = [inputs, *(scaled(size, width, f"hidden.{index}") for index, size in enumerate(hidden))]
        self.hidden = nn.ModuleList(nn.Linear(before, after) for before, after in pairwise(sizes))
        self.norms = nn.ModuleList(norm.layer(size) for size in sizes[1:])
        self.classifier = nn.Linear(sizes[-1], classes)
        initialise(self, generator)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, …) to logits (batch, classes)."""
        x = x.flatten(1)
        for layer, norm in zip(self.hidden, self.norms, strict=True):
            x = functional.relu(norm(layer(x)))
        return self.classifier(x)


class DigitCNN(nn.Module):
    """The digits network of FedBN (Li et al., ICLR 2021): (batch, channels, 28, 28) in [0, 1] to logits."""

    def __init__(
        self,
        width: float = 1.0,
        *,
        norm: NormSpec = NormSpec(),
        generator: torch.Generator | None = None,
        channels: int = 3,
        classes: int = 10,
    ) -> None:
        super().__init__()
        names = ("conv1", "conv2", "conv3", "linear1", "linear2")
        first, second, third, fourth, fifth = (
            scaled(size, width, name) for size, name in zip((64, 64, 128, 2048, 512), names, strict=True)
        )
        self.conv1 = nn.Conv2d(channels, first, 5, padding=2)
        self.norm1 = norm.layer(first)
        self.conv2 = nn.Conv2d(first, second, 5, padding=2)
        self.norm2 = norm.layer(second)
        self.conv3 = nn.Conv2d(second, third, 5, padding=2)
        self.norm3 = norm.layer(third)
        self.linear1 = nn.Linear(third * 49, fourth)
        self.norm4 = norm.layer(fourth)
        self.linear2 = nn.Linear(fourth, fifth)
        self.norm5 = norm.layer(fifth)
        self.classifier = nn.Linear(fifth, classes)
        initialise(self, generator)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, 28, 28) to (batch, classes)."""
        x = functional.max_pool2d(functional.relu(self.norm1(self.conv1(x))), 2)
        x = functional.max_pool2d(functional.relu(self.norm2(self.conv2(x))), 2)
        x = functional.relu(self.norm3(self.conv3(x))).flatten(1)
        x = functional.relu(self.norm4(self.linear1(x)))
        x = functional.relu(self.norm5(self.linear2(x)))
        return self.classifier(x)


class SmallCNN(nn.Module):
    """Three convolutions for small images, each followed by a halving of the grid: (batch, channels, 32, 32) to logits.

    Not a network of the paper: what a CPU trains over many rounds. ``stages`` are the channels at width 1.
    """

    def __init__(
        self,
        width: float = 1.0,
        *,
        norm: NormSpec = NormSpec(),
        generator: torch.Generator | None = None,
        channels: int = 3,
        classes: int = 10,
        stages: tuple[int, ...] = (32, 64, 128),
    ) -> None:
        super().__init__()
        sizes = [channels, *(scaled(size, width, f"convolution {index}") for index, size in enumerate(stages))]
        self.convolutions = nn.ModuleList(nn.Conv2d(before, after, 3, padding=1) for before, after in pairwise(sizes))
        self.norms = nn.ModuleList(norm.layer(size) for size in sizes[1:])
        self.classifier = nn.Linear(sizes[-1], classes)
        initialise(self, generator)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, height, width) to (batch, classes)."""
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = functional.max_pool2d(functional.relu(norm(convolution(x))), 2)
        return self.classifier(functional.adaptive_avg_pool2d(x, 1).flatten(1))


class PreActivationBlock(nn.Module):
    """Norm, ReLU, convolution, twice, beside a shortcut (He et al., ECCV 2016)."""

    def __init__(self, before: int, after: int, stride: int, norm: NormSpec) -> None:
        super().__init__()
        self.norm1 = norm.layer(before)
        self.conv1 = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
        self.norm2 = norm.layer(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        projects = stride != 1 or before != after
        self.left_out = left_out(before, stride)
        self.shortcut = nn.Conv2d(before, after, 1, stride=stride // self.left_out, bias=False) if projects else None

    def forward(self, x: Tensor) -> Tensor:
        """(batch, before, height, width) to (batch, after, height / stride, width / stride)."""
        out = functional.relu(self.norm1(x))
        shortcut = x if self.shortcut is None else self.shortcut(out[..., :: self.left_out, :: self.left_out])
        out = self.conv2(functional.relu(self.norm2(self.conv1(out))))
        return out + shortcut


class PreResNet18(nn.Module):
    """Pre-activation ResNet-18 for small images: (batch, channels, 32, 32) to logits."""

    def __init__(
        self,
        width: float = 1.0,
        *,
        norm: NormSpec = NormSpec(),
        generator: torch.Generator | None = None,
        channels: int = 3,
        classes: int = 10,
        stages: tuple[int, ...] = (64, 128, 256, 512),
        depth: int = 2,
    ) -> None:
        super().__init__()
        sizes = [scaled(size, width, f"stage {index}") for index, size in enumerate(stages)]
        self.conv = nn.Conv2d(channels, sizes[0], 3, padding=1, bias=False)
        blocks, before = [], sizes[0]
        for index, size in enumerate(sizes):
            for block in range(depth):
                blocks.append(PreActivationBlock(before, size, 2 if index and not block else 1, norm))
                before = size
        self.blocks = nn.Sequential(*blocks)
        self.norm = norm.layer(before)
        self.classifier = nn.Linear(before, classes)
        initialise(self, generator)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, height, width) to (batch, classes)."""
        x = functional.relu(self.norm(self.blocks(self.conv(x))))
        return self.classifier(functional.adaptive_avg_pool2d(x, 1).flatten(1))


class AlexNet(nn.Module):
    """AlexNet with batch norm and no dropout, as FedBN uses it on DomainNet: (batch, channels, 256, 256) to logits."""

    def __init__(
        self,
        width: float = 1.0,
        *,
        norm: NormSpec = NormSpec(),
        generator: torch.Generator | None = None,
        channels: int = 3,
        classes: int = 10,
    ) -> None:
        super().__init__()
        sizes = [scaled(size, width, f"convolution {index}") for index, size in enumerate((64, 192, 384, 256, 256))]
        dense = scaled(4096, width, "linear")
        kernels = ((11, 4, 2), (5, 1, 2), (3, 1, 1), (3, 1, 1), (3, 1, 1))
        pairs = zip([channels, *sizes], sizes, kernels, strict=False)
        self.convolutions = nn.ModuleList(nn.Conv2d(a, b, k, stride=s, padding=p) for a, b, (k, s, p) in pairs)
        self.norms = nn.ModuleList(norm.layer(size) for size in sizes)
        self.pool = nn.AdaptiveAvgPool2d(6)
        self.linears = nn.ModuleList((nn.Linear(sizes[-1] * 36, dense), nn.Linear(dense, dense)))
        self.linear_norms = nn.ModuleList((norm.layer(dense), norm.layer(dense)))
        self.classifier = nn.Linear(dense, classes)
        initialise(self, generator)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, 256, 256) to (batch, classes)."""
        for index, (convolution, norm) in enumerate(zip(self.convolutions, self.norms, strict=True)):
            x = functional.relu(norm(convolution(x)))
            if index in (0, 1, 4):
                x = functional.max_pool2d(x, 3, stride=2)
        x = self.pool(x).flatten(1)
        for linear, norm in zip(self.linears, self.linear_norms, strict=True):
            x = functional.relu(norm(linear(x)))
        return self.classifier(x)


NETWORKS: dict[str, WidthFactory] = {
    "mlp": MLP,
    "digit-cnn": DigitCNN,
    "small-cnn": SmallCNN,
    "preresnet18": PreResNet18,
    "alexnet": AlexNet,
}
"""The factories of networks by the name that settings give."""


def network(name: str, **options: Any) -> WidthFactory:
    """Return the factory of a network by name, with options such as ``classes`` fixed.

    Raises
    ------
    ValueError
        There is no such network.
    """
    if name not in NETWORKS:
        raise ValueError(f"there is no network {name}; choose from {', '.join(NETWORKS)}")
    made: WidthFactory = partial(NETWORKS[name], **options)
    return made
