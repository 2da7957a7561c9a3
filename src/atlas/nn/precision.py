"""Mixed precision on devices that have it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch


def mixed_precision(device: torch.device, precision: str, *, scaled: bool = True) -> AbstractContextManager[Any]:
    """Return autocast on a CUDA device, or a context that does nothing.

    Parameters
    ----------
    device : torch.device
        Where the forward pass runs; other devices than CUDA compute in float32.
    precision : {"float32", "bfloat16", "float16"}
        What matrix products and convolutions compute in.
    scaled : bool
        Whether the loss is scaled, as float16 needs; where gradients are read as they are, bfloat16 takes float16's place.
    """
    if device.type != "cuda" or precision == "float32":
        return nullcontext()
    return torch.autocast("cuda", dtype=getattr(torch, precision) if scaled else torch.bfloat16)
