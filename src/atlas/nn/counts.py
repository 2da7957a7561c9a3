"""Sizes and costs of modules: parameters, floating-point operations, multiply-accumulates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from atlas.nn.modes import mode_of
from atlas.nn.work import ONCE, work

_counting: ContextVar[bool] = ContextVar("counting", default=False)


def parameter_count(model: nn.Module) -> int:
    """Number of parameters, shared ones counted once."""
    return sum(parameter.numel() for parameter in model.parameters())


def convolution_backward_flops(
    grad_shape: Sequence[int],
    input_shape: Sequence[int],
    weight_shape: Sequence[int],
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
    wanted: Sequence[bool],
    **others: Any,
) -> int:
    """Floating-point operations of a convolution's gradients: that of the input and that of the weight each cost a forward pass.

    Every weight meets every example once at each place of the output (of the input, where the convolution is transposed). That
    holds with groups too, because the weight has the channels of one group only; torch's own formula charges the gradient of
    the weight once per group.

    Parameters
    ----------
    grad_shape, input_shape : sequence of int
        (batch, channels, …) of the output's gradient and of the input.
    weight_shape : sequence of int
        (channels, channels of one group, …).
    wanted : (bool, bool, bool)
        Whether the gradient of the input, of the weight and of the bias is asked for; the last costs nothing here.
    """
    places = (input_shape if transposed else grad_shape)[2:]
    return 2 * input_shape[0] * prod(places) * prod(weight_shape) * sum(map(bool, wanted[:2]))


def product_flops(sum_shape: Sequence[int], left_shape: Sequence[int], right_shape: Sequence[int], **others: Any) -> int:
    """Floating-point operations of a matrix product that is added to a tensor in place; ([batch,] m, k) by ([batch,] k, n).

    torch has formulas for the products that return a new tensor only.
    """
    return 2 * prod(left_shape) * right_shape[-1]


FORMULAS = {
    torch.ops.aten.convolution_backward: convolution_backward_flops,
    torch.ops.aten.addmm_: product_flops,
    torch.ops.aten.baddbmm_: product_flops,
}
"""Formulas in place of torch's, or beside them: from the shapes of an operation's arguments to what it costs."""


@contextmanager
def counted_flops() -> Iterator[FlopCounterMode]:
    """Count floating-point operations in a ``with`` block, by torch's counter and :data:`FORMULAS`.

    Matrix products, convolutions and attention count, forward and backward, with two operations per multiply-accumulate.
    """
    token = _counting.set(True)
    try:
        with FlopCounterMode(display=False, custom_mapping=FORMULAS) as counter:
            yield counter
    finally:
        _counting.reset(token)


def are_flops_counted() -> bool:
    """Whether operations are being counted: then a module does not pad, where it would do so only to be faster."""
    return _counting.get()


@torch.no_grad()
def forward_flops(model: nn.Module, inputs: Tensor) -> float:
    """Floating-point operations of one forward pass per sample; see :func:`counted_flops`.

    Leaves every module's mode as it was.

    Parameters
    ----------
    model : nn.Module
        Any module that takes one tensor.
    inputs : Tensor
        (batch, …); the count is divided by the batch.
    """
    # Views of parameters ask for gradients even under no_grad, and the counter's hooks on modules that take such a view fail.
    values = {name: parameter.detach() for name, parameter in model.named_parameters()}
    with mode_of(model, "eval"), work(ONCE), counted_flops() as counter:
        torch.func.functional_call(model, values, (inputs.detach(),))
    return counter.get_total_flops() / len(inputs)


def forward_macs(model: nn.Module, inputs: Tensor) -> float:
    """Multiply-accumulates per sample of a forward pass of inputs (batch, …): half the FLOPs; papers on ViTs say "FLOPs"."""
    return forward_flops(model, inputs) / 2
