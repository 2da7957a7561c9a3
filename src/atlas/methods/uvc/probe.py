"""Images to try a model on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def probe_images(model: Any, count: int) -> Tensor:
    """Random images (count, channels, height, width) of a timm model's own size, dtype and device; the same every time."""
    height, width = model.patch_embed.img_size
    weight = model.patch_embed.proj.weight
    random = torch.randn(count, weight.shape[1], height, width, generator=torch.Generator().manual_seed(0))
    return random.to(weight)
