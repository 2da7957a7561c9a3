"""Kernels that the pretended device (:mod:`tests.pretend_accelerator`) has and the CPU has not: autocast's, and fused cells."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

NAME = "pretended"
aten = torch.ops.aten

# What CUDA's autocast computes in the lower precision, in float32, and in the widest type of its inputs (ATen's autocast_mode.h).
LOWER = """
    conv1d conv2d conv3d conv_transpose1d conv_transpose2d.input conv_transpose3d.input convolution prelu addmm addmv addr matmul
    mm mv linalg_vecdot linalg_multi_dot linear addbmm baddbmm bmm chain_matmul _thnn_fused_lstm_cell _thnn_fused_gru_cell
    lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell scaled_dot_product_attention
"""
FLOAT32 = """
    acos asin cosh erfinv exp expm1 log log10 log2 log1p reciprocal rsqrt sinh tan pow.Tensor_Scalar pow.Tensor_Tensor pow.Scalar
    softplus layer_norm native_layer_norm group_norm frobenius_norm.dim nuclear_norm cosine_similarity poisson_nll_loss
    cosine_embedding_loss nll_loss nll_loss2d hinge_embedding_loss kl_div l1_loss smooth_l1_loss huber_loss mse_loss
    margin_ranking_loss multilabel_margin_loss soft_margin_loss triplet_margin_loss multi_margin_loss
    binary_cross_entropy_with_logits dist pdist cdist renorm logsumexp upsample_bilinear2d upsample_nearest2d upsample_bicubic2d
    norm.Scalar norm.ScalarOpt_dim prod prod.dim_int softmax.int log_softmax.int cumprod cumsum sum sum.dim_IntList
    linalg_vector_norm
"""
WIDEST = "addcdiv addcmul atan2 bilinear cross dot grid_sampler index_put tensordot scatter_add"


def register(on_device: type[Tensor], compute: Callable[[Any, Sequence[Any], dict[str, Any]], Any]) -> tuple[Any, ...]:
    """Let PyTorch know the kernels, for as long as what is returned is kept.

    Parameters
    ----------
    on_device : type
        The kind of tensors that autocast casts.
    compute : callable
        Computes an operation on its arguments and keywords.
    """
    library = torch.library.Library("aten", "IMPL", "AutocastPrivateUse1")
    others = torch.library.Library("_", "IMPL", "AutocastPrivateUse1")
    others.fallback(torch.library.fallthrough_kernel)

    def castable(value: Any) -> bool:
        return isinstance(value, on_device) and value.is_floating_point() and value.dtype != torch.float64

    for names, choose in ((LOWER, _lower), (FLOAT32, _float32), (WIDEST, _widest)):
        for name in names.split():
            packet, _, overload = name.partition(".")
            operation = getattr(getattr(aten, packet), overload or "default", None)
            if operation is not None:
                library.impl(operation, partial(_cast_first, operation, choose, castable))
    library.impl(aten.binary_cross_entropy.default, _refuse)
    # what PyTorch does out of a dispatch mode's sight, as where a list becomes an index
    unseen = torch.library.Library("aten", "IMPL", "PrivateUse1")
    for operation in (aten.empty_strided.default, aten.empty.memory_format, aten._copy_from.default):
        unseen.impl(operation, partial(_unseen, compute, operation))
    return library, others, unseen


def _unseen(compute: Callable[[Any, Sequence[Any], dict[str, Any]], Any], operation: Any, *args: Any, **kwargs: Any) -> Any:
    return compute(operation, args, kwargs)


def _lower(floats: Sequence[Tensor]) -> torch.dtype:
    return torch.get_autocast_dtype(NAME)


def _float32(floats: Sequence[Tensor]) -> torch.dtype:
    return torch.float32


def _widest(floats: Sequence[Tensor]) -> torch.dtype:
    return torch.float32 if any(each.dtype == torch.float32 for each in floats) else torch.get_autocast_dtype(NAME)


def _refuse(*args: Any, **kwargs: Any) -> Any:
    raise RuntimeError("torch.nn.functional.binary_cross_entropy and torch.nn.BCELoss are unsafe to autocast.")


def _cast_first(
    operation: Any, choose: Callable[[Sequence[Tensor]], torch.dtype], castable: Callable[[Any], bool], *args: Any, **kwargs: Any
) -> Any:
    """Compute an operation on floating-point tensors of one type, without autocast."""
    flat, shape = torch.utils._pytree.tree_flatten((args, kwargs))
    dtype = choose([value for value in flat if castable(value)])
    outside = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)
    with torch._C._ExcludeDispatchKeyGuard(outside):
        cast = [value.to(dtype) if castable(value) else value for value in flat]
        given, named = torch.utils._pytree.tree_unflatten(cast, shape)
        return operation(*given, **named)


# Fused cells, in ATen's form: what a step gives, what it keeps for the way back, and the way back.

Optional = Tensor | None


def _lstm_cell(gates: Tensor, hidden: Tensor, cell: Tensor, *biases: Optional) -> tuple[Tensor, ...]:
    total = sum((bias for bias in biases if bias is not None), gates + hidden)
    enter, forget, new, leave = total.chunk(4, 1)
    enter, forget, new, leave = enter.sigmoid(), forget.sigmoid(), new.tanh(), leave.sigmoid()
    after = forget * cell + enter * new
    return leave * after.tanh(), after, torch.cat([enter, forget, new, leave], 1)


def _lstm_cell_backward(
    d_hidden: Optional, d_after: Optional, cell: Tensor, after: Tensor, gates: Tensor, biased: bool
) -> tuple[Optional, ...]:
    enter, forget, new, leave = gates.chunk(4, 1)
    d_hidden = torch.zeros_like(cell) if d_hidden is None else d_hidden
    bent = after.tanh()
    d_cell = d_hidden * leave * (1 - bent**2) + (0 if d_after is None else d_after)
    slopes = (enter * (1 - enter), forget * (1 - forget), 1 - new**2, leave * (1 - leave))
    parts = (d_cell * new, d_cell * cell, d_cell * enter, d_hidden * bent)
    d_gates = torch.cat([part * slope for part, slope in zip(parts, slopes, strict=True)], 1)
    return d_gates, d_cell * forget, d_gates.sum(0) if biased else None


def _gru_cell(gates: Tensor, hidden: Tensor, state: Tensor, *biases: Optional) -> tuple[Tensor, ...]:
    of_input, of_state = gates.chunk(3, 1), hidden.chunk(3, 1)
    if biases and biases[0] is not None and biases[1] is not None:
        of_input, of_state = (gates + biases[0]).chunk(3, 1), (hidden + biases[1]).chunk(3, 1)
    reset, update = (of_input[0] + of_state[0]).sigmoid(), (of_input[1] + of_state[1]).sigmoid()
    new = (of_input[2] + reset * of_state[2]).tanh()
    return new + update * (state - new), torch.cat([reset, update, new, state, of_state[2]], 1)


def _gru_cell_backward(d_hidden: Tensor, saved: Tensor, biased: bool) -> tuple[Optional, ...]:
    reset, update, new, state, kept = saved.chunk(5, 1)
    d_new = d_hidden * (1 - update) * (1 - new**2)
    d_update = d_hidden * (state - new) * update * (1 - update)
    d_reset = d_new * kept * reset * (1 - reset)
    d_input, d_state = torch.cat([d_reset, d_update, d_new], 1), torch.cat([d_reset, d_update, d_new * reset], 1)
    return d_input, d_state, d_hidden * update, d_input.sum(0) if biased else None, d_state.sum(0) if biased else None


CELLS: dict[str, Callable[..., Any]] = {
    "_thnn_fused_lstm_cell": _lstm_cell,
    "_thnn_fused_lstm_cell_backward_impl": _lstm_cell_backward,
    "_thnn_fused_gru_cell": _gru_cell,
    "_thnn_fused_gru_cell_backward": _gru_cell_backward,
}
