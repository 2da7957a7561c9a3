"""Random changes of training images, drawn per client and applied to the images of many clients at once."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from atlas.tasks.federated_learning.protocol import Data


@dataclass(frozen=True)
class Augmentation:
    """Shift within a zero border, flip, rotate.

    Attributes
    ----------
    padding : int
        Largest shift, in pixels, up and down, left and right.
    flip : bool
        Mirror half of the images.
    degrees : float
        Largest rotation.
    """

    padding: int = 0
    flip: bool = False
    degrees: float = 0.0

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Uniform numbers (count, 4) in [0, 1): shift down, shift right, flip, rotation."""
        return torch.rand(count, 4, generator=generator)

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        """(n, channels, height, width) and (n, 4) to images of the same shape."""
        if self.degrees:
            images = self._rotated(images, draws[:, 3])
        if self.flip:
            images = torch.where((draws[:, 2] < 0.5)[:, None, None, None], images.flip(-1), images)
        return self._shifted(images, draws[:, :2]) if self.padding else images

    def _shifted(self, images: Tensor, draws: Tensor) -> Tensor:
        """Crops of the padded images, by one gather."""
        count, _, height, width = images.shape
        padded = functional.pad(images, [self.padding] * 4)
        corner = (draws * (2 * self.padding + 1)).long()
        rows = corner[:, :1] + torch.arange(height, device=images.device)
        columns = corner[:, 1:] + torch.arange(width, device=images.device)
        every = torch.arange(count, device=images.device)[:, None, None]
        return padded.permute(0, 2, 3, 1)[every, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)

    def _rotated(self, images: Tensor, draws: Tensor) -> Tensor:
        angle = (2 * draws - 1) * math.radians(self.degrees)
        ratio = images.shape[-2] / images.shape[-1]
        zero = torch.zeros_like(angle)
        top = torch.stack([angle.cos(), -angle.sin() * ratio, zero], -1)
        bottom = torch.stack([angle.sin() / ratio, angle.cos(), zero], -1)
        grid = functional.affine_grid(torch.stack([top, bottom], 1).to(images.dtype), list(images.shape), align_corners=False)
        return functional.grid_sample(images, grid, align_corners=False)


def augmentation(data: Data) -> Augmentation | None:
    """Return what a protocol asks for; nothing if it asks for nothing."""
    if not (data.crop_padding or data.flip or data.rotation_degrees):
        return None
    return Augmentation(data.crop_padding, data.flip, data.rotation_degrees)
