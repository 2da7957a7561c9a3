"""Random numbers of a model's training pass, as a module: so that ranks that share a batch can draw for the whole of it."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class UniformDraws(nn.Module):
    """Draws from [0, 1) for every image of a pass, from the process's generator of the device."""

    def forward(self, like: Tensor) -> Tensor:
        """Draw float32 numbers of the shape of (batch, …)."""
        return torch.rand(like.shape, device=like.device)
