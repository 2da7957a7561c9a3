"""Random changes of batches of images on their own device; draws come from a generator, so that a batch can be made again.

Where the images are one rank's share of a batch, the draws are those of the whole batch, so that every image is changed alike
whatever the number of ranks.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from atlas.nn.ranks import Share


def random_crops(images: Tensor, padding: int, random: torch.Generator, share: Share | None = None) -> Tensor:
    """Pad with zeros and crop back at a random place, image by image. (n, channels, height, width)."""
    count, _, height, width = images.shape
    padded = functional.pad(images, (padding,) * 4)
    offsets = torch.randint(2 * padding + 1, (2, _whole(images, share)), generator=random)
    offsets = _own(offsets, share).to(images.device)
    rows = offsets[0][:, None] + torch.arange(height, device=images.device)
    columns = offsets[1][:, None] + torch.arange(width, device=images.device)
    index = torch.arange(count, device=images.device)[:, None, None]
    return padded[index, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def random_flips(images: Tensor, random: torch.Generator, share: Share | None = None) -> Tensor:
    """Mirror every second image, by chance. (n, channels, height, width)."""
    flipped = _own(torch.rand(_whole(images, share), generator=random), share).to(images.device) < 0.5
    return torch.where(flipped[:, None, None, None], images.flip(-1), images)


def random_rotations(images: Tensor, degrees: float, random: torch.Generator, share: Share | None = None) -> Tensor:
    """Turn each of float images (batch, channels, height, width) about its middle by an angle from U(−degrees, degrees).

    Pixels are the nearest ones, and zeros outside.
    """
    drawn = _own(torch.rand(_whole(images, share), generator=random), share)
    angles = (drawn * 2 - 1).to(images.device) * math.radians(degrees)
    cosine, sine, none = angles.cos(), angles.sin(), torch.zeros_like(angles)
    matrices = torch.stack([torch.stack([cosine, -sine, none], 1), torch.stack([sine, cosine, none], 1)], 1)
    grid = functional.affine_grid(matrices, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid.to(images.dtype), mode="nearest", align_corners=False)


def _whole(images: Tensor, share: Share | None) -> int:
    """Number of images of the batch that draws are made for."""
    return len(images) if share is None else share.total


def _own(drawn: Tensor, share: Share | None) -> Tensor:
    """The draws (…, whole batch) of the images that are there."""
    return drawn if share is None else drawn[..., share.places]
