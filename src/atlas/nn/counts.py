"""Sizes and costs of modules: parameters, floating-point operations, multiply-accumulates."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from atlas.nn.attacks import mode_of


def parameter_count(model: nn.Module) -> int:
    """Number of parameters, shared ones counted once."""
    return sum(parameter.numel() for parameter in model.parameters())


@torch.no_grad()
def forward_flops(model: nn.Module, inputs: Tensor) -> float:
    """Floating-point operations of one forward pass per sample, by torch's counter.

    Counts matrix products, convolutions and attention; two per multiply-accumulate. Leaves every module's mode as it was.

    Parameters
    ----------
    model : nn.Module
        Any module that takes one tensor.
    inputs : Tensor
        (batch, …); the count is divided by the batch.
    """
    from torch.utils.flop_counter import FlopCounterMode

    # Views of parameters ask for gradients even under no_grad, and the counter's hooks on modules that take such a view fail.
    values = {name: parameter.detach() for name, parameter in model.named_parameters()}
    with mode_of(model, "eval"), FlopCounterMode(display=False) as counter:
        torch.func.functional_call(model, values, (inputs.detach(),))
    return counter.get_total_flops() / len(inputs)


def forward_macs(model: nn.Module, inputs: Tensor) -> float:
    """Multiply-accumulates of one forward pass per sample: half the FLOPs; what papers on ViTs print as "FLOPs"."""
    return forward_flops(model, inputs) / 2
