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
    precision : {"float32", "bfloat16", "float16", "float64"}
        What matrix products and convolutions compute in; float64 is no mixture, see :func:`weight_type`.
    scaled : bool
        Whether the loss is scaled, as float16 needs; where gradients are read as they are, bfloat16 takes float16's place.
    """
    if device.type != "cuda" or precision in ("float32", "float64"):
        return nullcontext()
    return torch.autocast("cuda", dtype=getattr(torch, precision) if scaled else torch.bfloat16)


def forget_casts() -> None:
    """Have weights that have moved cast anew, where a caller has put a whole training into a block of autocast.

    Autocast keeps what it has cast of a weight until its outermost block ends, whatever becomes of the weight (PyTorch 2.15):
    every later step would compute with the weights of the first one. To be called after every step of an optimiser.
    """
    torch.clear_autocast_cache()


def weight_type(precision: str) -> torch.dtype:
    """What weights and images are stored in: float32, as mixed precision wants it, or float64 where all is computed so."""
    return torch.float64 if precision == "float64" else torch.float32
