"""What a network costs: multiply–accumulates and parameters, by two ways of counting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from atlas.methods.split_mix.grouped import GroupedConv2d, GroupedLinear
from atlas.methods.split_mix.norms import BatchNorm


@dataclass(frozen=True)
class Complexity:
    """Cost of one image.

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


@torch.no_grad()
def complexity(model: nn.Module, input_shape: Sequence[int], *, style: Literal["mac", "thop"] = "mac") -> Complexity:
    """Count a network's cost by running it once on zeros, in evaluation mode.

    Parameters
    ----------
    model : nn.Module
        Its mode is put back.
    input_shape : sequence of int
        Shape of one input, without the batch.
    style : {"mac", "thop"}
        Convolutions and linear layers only; or, as the thop package counts, besides one per output for a bias and two per
        element for batch norm.

    Raises
    ------
    ValueError
        There is no such style.
    """
    if style not in ("mac", "thop"):
        raise ValueError(f"style must be mac or thop, not {style!r}")
    total = 0.0
    batch = 2  # batch statistics need two

    def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
        nonlocal total
        total += _macs(module, inputs[0], output, style) / batch

    counted = (nn.Conv2d, nn.Linear, GroupedConv2d, GroupedLinear, BatchNorm, nn.BatchNorm1d, nn.BatchNorm2d)
    handles = [module.register_forward_hook(hook) for module in model.modules() if isinstance(module, counted)]
    was_training = model.training
    some = next(model.parameters())
    try:
        model.eval()
        model(torch.zeros(batch, *input_shape, device=some.device, dtype=some.dtype))
    finally:
        model.train(was_training)
        for handle in handles:
            handle.remove()
    return Complexity(round(total), sum(parameter.numel() for parameter in model.parameters()))


def _macs(module: Any, x: Tensor, out: Tensor, style: str) -> float:
    if isinstance(module, BatchNorm | nn.BatchNorm1d | nn.BatchNorm2d):
        return 2 * x.numel() if style == "thop" else 0
    weight = module.weight
    one = weight[0, 0] if isinstance(module, GroupedConv2d | GroupedLinear) else weight[0]
    bias = out.numel() if style == "thop" and module.bias is not None else 0
    return out.numel() * one.numel() + bias
