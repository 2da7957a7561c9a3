"""What a network costs: multiply–accumulates and parameters, by two ways of counting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.pooling import _AdaptiveAvgPoolNd

from atlas.methods.split_mix.grouped import GroupedConv2d, GroupedNorm
from atlas.methods.split_mix.norms import BatchNorm
from atlas.nn.counts import forward_macs, parameter_count
from atlas.nn.kinds import require_kind, require_sequence

CONVOLUTIONS = (_ConvNd, GroupedConv2d)
NORMS = (_BatchNorm, BatchNorm, GroupedNorm)


@dataclass(frozen=True)
class Complexity:
    """What a network costs per image.

    Attributes
    ----------
    macs : int
        Multiply–accumulates of a forward pass.
    parameters : int
        Parameters that the pass uses.
    """

    macs: int
    parameters: int

    @property
    def train_macs(self) -> int:
        """Of a training step per image: one forward pass, and two more for the gradients of inputs and weights."""
        return 3 * self.macs


def complexity(model: nn.Module, input_shape: Sequence[int], *, style: Literal["mac", "thop"] = "mac") -> Complexity:
    """Count a network's cost by running it once on zeros, in evaluation mode.

    Parameters
    ----------
    model : nn.Module
        Modes of its modules are put back.
    input_shape : sequence of int
        Shape of one input, without the batch.
    style : {"mac", "thop"}
        Products of convolutions, linear layers and matrices only, whatever module takes them. Or, as the package thop counts,
        with which the authors measured, besides: one operation per output for the bias of a convolution (none for that of a
        linear layer), two per element for batch norm, and per output of an adaptive average pool the entries of its window,
        ⌊input size / output size⌋ per dimension, and a division. Like thop this sees pools that are layers, and not functions.

    Raises
    ------
    ValueError
        There is no such style.
    """
    if style not in ("mac", "thop"):
        raise ValueError(f"style must be mac or thop, not {style!r}")
    require_kind(nn.Module, "an nn.Module", model=model)
    require_sequence("the shape of one input", input_shape=input_shape)
    batch = 2  # batch statistics need two
    extras: list[int] = []

    def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
        extras.append(_besides_products(module, inputs[0], output))

    counted = (*CONVOLUTIONS, *NORMS, _AdaptiveAvgPoolNd) if style == "thop" else ()
    handles = [module.register_forward_hook(hook) for module in model.modules() if isinstance(module, counted)]
    weight = next(model.parameters())
    try:
        macs = forward_macs(model, torch.zeros(batch, *input_shape, device=weight.device, dtype=weight.dtype))
    finally:
        for handle in handles:
            handle.remove()
    return Complexity(round(macs + sum(extras) / batch), parameter_count(model))


def _besides_products(module: Any, x: Tensor, out: Tensor) -> int:
    """What thop counts of a layer besides multiply–accumulates."""
    if isinstance(module, CONVOLUTIONS):
        return 0 if module.bias is None else out.numel()
    if isinstance(module, NORMS):
        return 2 * x.numel()
    window = prod(before // after for before, after in zip(x.shape[2:], out.shape[2:], strict=True))
    return (window + 1) * out.numel()
