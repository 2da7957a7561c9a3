"""Domains made of one dataset: the same labels, other images. Images are (n, channels, height, width) in [0, 1]."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

Change = Callable[[Tensor, torch.Generator], Tensor]


def identity(x: Tensor, generator: torch.Generator) -> Tensor:
    """Return the images (batch, channels, height, width) as they are."""
    return x


def inverted(x: Tensor, generator: torch.Generator) -> Tensor:
    """Return 1 − x of images (batch, channels, height, width) in [0, 1]: dark where they were light."""
    return 1 - x


def blended(x: Tensor, generator: torch.Generator) -> Tensor:
    """|0.5·b − x| of (batch, channels, height, width), with a background b of uniform noise in blocks of 2 × 2 pixels.

    So MNIST-M blends digits with photographs.
    """
    return (0.5 * _blocks(x, 2, generator) - x).abs()


def noisy_transpose(x: Tensor, generator: torch.Generator) -> Tensor:
    """Rows of (batch, channels, side, side) for columns, half the contrast, and Gaussian noise of deviation 0.15."""
    noise = torch.randn(x.shape, generator=generator)
    return (x.transpose(-1, -2) * 0.5 + 0.25 + 0.15 * noise).clamp(0, 1)


def blurred(x: Tensor, generator: torch.Generator) -> Tensor:
    """Grey of images (batch, channels, height, width), and the mean of 3 × 3 pixels."""
    grey = x.mean(1, keepdim=True).expand_as(x)
    return functional.avg_pool2d(functional.pad(grey, (1, 1, 1, 1), mode="replicate"), 3, stride=1)


def tinted(x: Tensor, generator: torch.Generator) -> Tensor:
    """Colour channels of (batch, channels, height, width) in turn (a hue shift of 120°), and noise.

    The noise has an amplitude of 0.3, in blocks of 4 × 4 pixels.
    """
    return (x.roll(1, dims=1) + 0.3 * (_blocks(x, 4, generator) - 0.5)).clamp(0, 1)


def _blocks(x: Tensor, size: int, generator: torch.Generator) -> Tensor:
    height, width = x.shape[-2:]
    coarse = torch.rand(*x.shape[:2], -(-height // size), -(-width // size), generator=generator)
    return coarse.repeat_interleave(size, -2).repeat_interleave(size, -1)[..., :height, :width]


CHANGES: dict[str, Change] = {
    "identity": identity,
    "inverted": inverted,
    "blended": blended,
    "noisy-transpose": noisy_transpose,
    "blurred": blurred,
    "tinted": tinted,
}
