"""Neural optimizees: multi-layer perceptrons, convolutional networks, ResNets, a vision transformer.

Normalisation keeps no running statistics, because a pure function cannot update them.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from atlas.l2o.optimizees import DataOptimizee, Examples, Optimizee, initialiser, module_optimizee

ACTIVATIONS = {"relu": nn.ReLU, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh}
ConvSpec = Sequence[tuple[int, int] | str]


def activation(name: str) -> nn.Module:
    """An activation by name, or a ValueError that lists them."""
    if name not in ACTIVATIONS:
        raise ValueError(f"there is no activation {name}; choose from {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]()


class MLPOptimizee(DataOptimizee):
    """A perceptron whose instances are one batched matrix product per layer; see :func:`mlp`."""

    def __init__(self, name: str, module: nn.Sequential, act: nn.Module, data: Examples, init: str) -> None:
        super().__init__(name, data, functional.cross_entropy)
        self.module, self.act = module, act
        self.initialise = initialiser(init)
        self.shapes = tuple((key, value.shape) for key, value in module.named_parameters())

    def init(self, n: int, gen: torch.Generator) -> Tensor:
        """Draw starting parameters of n instances, (n, P), on the device of the data."""
        return torch.stack([self.initialise(self.module, gen) for _ in range(n)]).to(self.data["train"][0].device)

    def outputs(self, theta: Tensor, inputs: Tensor) -> Tensor:
        """Logits (n, batch, classes) of inputs (n, batch, …), flattened."""
        x = inputs.flatten(2)
        tensors = list(self.views(theta).values())
        layers = list(zip(tensors[::2], tensors[1::2], strict=True))
        for index, (weight, bias) in enumerate(layers):
            x = torch.baddbmm(bias.unsqueeze(1), x, weight.transpose(1, 2))
            if index + 1 < len(layers):
                x = self.act(x)
        return x


def mlp(
    sizes: Sequence[int],
    act: Literal["relu", "sigmoid", "tanh"] = "relu",
    *,
    data: Examples,
    init: str = "default",
    name: str | None = None,
) -> Optimizee:
    """A multi-layer perceptron with cross-entropy on labelled examples.

    Parameters
    ----------
    sizes : sequence of int
        Inputs, hidden widths, classes.
    init : str
        See :func:`~atlas.l2o.optimizees.module_optimizee`.

    Raises
    ------
    ValueError
        Fewer than two sizes, inputs of another size, an unknown activation or initialisation.
    """
    inputs = data["train"][0][0].numel()
    if len(sizes) < 2 or sizes[0] != inputs:
        raise ValueError(f"sizes must start with the {inputs} inputs and end with the classes, not {list(sizes)}")
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), activation(act)]
    label = name or "mlp-" + "-".join(map(str, sizes))
    return MLPOptimizee(label, nn.Sequential(*layers[:-1]), activation(act), data, init)


def convnet(
    spec: ConvSpec,
    *,
    data: Examples,
    classes: int = 10,
    act: Literal["relu", "sigmoid", "tanh"] = "relu",
    init: str = "default",
    name: str | None = None,
) -> Optimizee:
    """A convolutional network with valid padding and a linear classifier, with cross-entropy on images.

    Parameters
    ----------
    spec : sequence
        ``(channels, kernel)`` for a convolution with its activation, ``"pool"`` for 2 × 2 max-pooling.

    Raises
    ------
    ValueError
        The images are too small for the layers.
    """
    channels, height, width = data["train"][0].shape[1:]
    layers: list[nn.Module] = []
    for part in spec:
        if isinstance(part, str):
            if part != "pool":
                raise ValueError(f"there is no layer {part}; write (channels, kernel) or pool")
            layers.append(nn.MaxPool2d(2))
            height, width = height // 2, width // 2
        else:
            layers += [nn.Conv2d(channels, part[0], part[1]), activation(act)]
            channels, height, width = part[0], height - part[1] + 1, width - part[1] + 1
        if min(height, width) < 1:
            raise ValueError(f"nothing is left of the images after {list(spec)}")
    layers += [nn.Flatten(), nn.Linear(channels * height * width, classes)]
    return module_optimizee(nn.Sequential(*layers), functional.cross_entropy, data, init, name=name or "convnet")


def normalisation(kind: str, channels: int) -> nn.Module:
    """Batch or group normalisation without running statistics, or none."""
    if kind == "batch":
        return nn.BatchNorm2d(channels, track_running_stats=False)
    if kind == "group":
        return nn.GroupNorm(min(8, channels), channels)
    raise ValueError(f"there is no normalisation {kind}; choose from batch, group")


class ResidualBlock(nn.Module):
    """Two 3 × 3 convolutions with normalisation, and a shortcut that is projected where channels change."""

    def __init__(self, before: int, after: int, stride: int, norm: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.norm1 = normalisation(norm, after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.norm2 = normalisation(norm, after)
        same = before == after and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(before, after, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, before, h, w) to (batch, after, h/stride, w/stride)."""
        inner = functional.relu(self.norm1(self.conv1(x)))
        return functional.relu(self.norm2(self.conv2(inner)) + self.shortcut(x))


class ResNet(nn.Module):
    """CIFAR ResNet of 6n+2 layers (He et al., CVPR 2016), or 6n+4 with a projected first stage, of width × (16, 32, 64)."""

    def __init__(self, depth: int, width: int = 1, channels: int = 3, classes: int = 10, norm: str = "batch") -> None:
        super().__init__()
        if (depth - 2) % 6 and (depth - 4) % 6:
            raise ValueError(f"depth must be 6n + 2 or 6n + 4, not {depth}")
        blocks = (depth - 2) // 6
        stages = [16 * width, 32 * width, 64 * width]
        self.stem = nn.Conv2d(channels, 16, 3, 1, 1, bias=False)
        self.norm = normalisation(norm, 16)
        layers: list[nn.Module] = []
        before = 16
        for stage, after in enumerate(stages):
            for block in range(blocks):
                layers.append(ResidualBlock(before, after, 2 if stage and not block else 1, norm))
                before = after
        self.blocks = nn.Sequential(*layers)
        self.head = nn.Linear(before, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, h, w) to (batch, classes)."""
        x = self.blocks(functional.relu(self.norm(self.stem(x))))
        return self.head(x.mean((2, 3)))


def resnet(
    depth: int = 20,
    width: int = 1,
    *,
    data: Examples,
    classes: int = 10,
    norm: Literal["batch", "group"] = "batch",
    init: str = "default",
    name: str | None = None,
) -> Optimizee:
    """A CIFAR ResNet with cross-entropy; normalises with each batch's own statistics, in evaluation too."""
    module = ResNet(depth, width, data["train"][0].shape[1], classes, norm)
    return module_optimizee(module, functional.cross_entropy, data, init, name=name or f"resnet{depth}")


def vision_transformer(
    *,
    data: Examples,
    patch_size: int = 4,
    embed_dim: int = 96,
    depth: int = 6,
    num_heads: int = 3,
    classes: int = 10,
    name: str = "vit",
) -> Optimizee:
    """A timm VisionTransformer with cross-entropy on square images."""
    from timm.models.vision_transformer import VisionTransformer

    channels, size, _ = data["train"][0].shape[1:]
    module = VisionTransformer(
        img_size=size,
        patch_size=patch_size,
        in_chans=channels,
        num_classes=classes,
        embed_dim=embed_dim,
        depth=depth,
        num_heads=num_heads,
        weight_init="jax",
    )
    return module_optimizee(module, functional.cross_entropy, data, name=name, vectorize=False)
