"""AttnScale and FeatScale on timm vision transformers, without an n × n map and without leaving fused attention.

AttnScale (Wang et al., ICLR 2022, Sec. 3.1). With Â = J + (1 + ω)(A − J) and rows of A that sum to 1,

    Â V = A V′,   V′ = DC[V] + (1 + ω) HC[V] = V + ω (V − mean V):

amplify the high frequencies of V, then attend as ever. So the layer that projects to queries, keys and values also rewrites V,
and every attention kernel, normalisation of queries and keys, and position bias keeps working. The layer stays the object that it
was, of another class and with one more parameter: hooks on it, pruning masks among them, stay in force.

FeatScale (Sec. 3.2). SA′ = SA + s ⊙ DC[SA] + t ⊙ HC[SA] = (1 + t) ⊙ SA + (s − t) ⊙ mean SA, after the output projection and its
dropout, before LayerScale, drop-path and the residual sum: the last module of the attention is swapped.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from atlas.methods.anti_oversmoothing.rewriting import (
    RewrittenOutput,
    RewrittenQKV,
    move_hooks,
    require_finite,
    rewrite_output,
    rewrite_qkv,
)
from atlas.nn.vit import refuse_masks


@torch.fx.wrap  # one node of a traced graph: which dtype it gets is known only when the graph runs
def token_mean(tokens: Tensor) -> Tensor:
    """Mean over the token axis (−2), kept; accumulated in float32 under mixed precision, in the dtype of ``tokens``."""
    if tokens.dtype in (torch.float16, torch.bfloat16):
        return tokens.mean(-2, keepdim=True, dtype=torch.float32).to(tokens.dtype)
    return tokens.mean(-2, keepdim=True)


class ScaledQKV(RewrittenQKV):
    """Amplifies the high frequencies of the values, head by head: AttnScale. Adds ``omega`` (heads,)."""

    scale = "omega"
    if TYPE_CHECKING:
        omega: nn.Parameter

    def forward(self, x: Tensor) -> Tensor:
        """Project (…, tokens, dim) to (…, tokens, queries + keys + values), each heads · its width; V is V + ω (V − mean V)."""
        projected = functional.linear(x, self.weight, self.bias)
        width = self.omega.numel() * self.value_dim
        values = projected[..., -width:]
        omega = self.omega.repeat_interleave(self.value_dim).to(values.dtype)
        high = values - token_mean(values)
        if not torch.is_grad_enabled() and not torch.jit.is_tracing():  # nothing will ask for the values as they were
            values.addcmul_(high, omega)
            return projected
        return torch.cat((projected[..., :-width], torch.addcmul(values, high, omega)), -1)


class FeatScale(RewrittenOutput):
    """Dropout of the attention output, then re-weighting of its mean and mean-free parts; ``s`` and ``t`` are (dim,)."""

    def __init__(self, p: float, like: Tensor, init_dc: float, init_hc: float, gain: float) -> None:
        super().__init__(p)
        self.gain = gain
        self.s = nn.Parameter(like.new_full((like.shape[0],), init_dc))
        self.t = nn.Parameter(like.new_full((like.shape[0],), init_hc))

    def forward(self, x: Tensor) -> Tensor:
        """Re-weight (…, tokens, dim)."""
        x = functional.dropout(x, self.p, self.training)
        s, t = (self.gain * self.s).to(x.dtype), (self.gain * self.t).to(x.dtype)
        return torch.addcmul((s - t) * token_mean(x), x, 1 + t)


def attnscale_output(attended: Tensor, values: Tensor, omega: Tensor) -> Tensor:
    """AttnScale applied after any attention: (1 + ω)·A V − ω·mean V.

    Needs no row-stochastic A, so it also serves attention whose maps are mixed after the softmax (talking heads).

    Parameters
    ----------
    attended, values : Tensor
        A V and V, (batch, heads, tokens, head_dim).
    omega : Tensor
        (heads,).
    """
    scale = omega[:, None, None].to(attended.dtype)
    return attended + scale * (attended - token_mean(values))


def attnscale_sdpa(
    q: Tensor, k: Tensor, v: Tensor, omega: Tensor, *, attn_mask: Tensor | None = None, dropout_p: float = 0.0
) -> Tensor:
    """Scaled dot-product attention with AttnScale, fused.

    Parameters
    ----------
    q, k, v : Tensor
        (batch, heads, tokens, head_dim).
    omega : Tensor
        (heads,).
    attn_mask : Tensor, optional
        A floating-point bias that is added to the logits; or a boolean key-padding mask, the same for every query
        ((batch, 1 or heads, 1, tokens), true where a key is valid): then the mean is over valid tokens.
    dropout_p : float
        Dropout on A, before scaling.

    Returns
    -------
    Tensor
        (batch, heads, tokens, head_dim).

    Raises
    ------
    NotImplementedError
        The boolean mask differs between queries (causal attention): the mean over tokens would leak what it hides.
    """
    valid: Tensor | None = None
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        if attn_mask.shape[-2] != 1:
            raise NotImplementedError("attn_mask differs between queries; AttnScale takes key-padding masks (…, 1, tokens)")
        valid = attn_mask.transpose(-2, -1)
    if valid is None:
        mean = token_mean(v)
    else:
        weights = valid.to(v.dtype)
        mean = (v * weights).sum(-2, keepdim=True) / weights.sum(-2, keepdim=True).clamp_min(1)
    amplified = torch.addcmul(v, v - mean, omega[:, None, None].to(v.dtype))
    return functional.scaled_dot_product_attention(q, k, amplified, attn_mask=attn_mask, dropout_p=dropout_p)


def apply_attnscale(model: nn.Module, *, init: float = 0.0, blocks: Sequence[int] | None = None) -> nn.Module:
    """Add AttnScale to a timm VisionTransformer, in place; at ``init`` 0 its outputs do not change.

    Parameters
    ----------
    model : nn.Module
        Any timm VisionTransformer with plain softmax attention.
    init : float
        Initial ω of every head.
    blocks : sequence of int, optional
        Blocks to treat; all by default.

    Returns
    -------
    nn.Module
        The same model; new parameters ``blocks.<l>.attn.qkv.omega`` (heads,).

    Raises
    ------
    TypeError
        Names the blocks whose attention is not plain softmax attention with one fused linear ``qkv``: wrapped and parametrised
        layers (adapters, ``torch.nn.utils.parametrize``) are refused, hooks on a linear layer (``torch.nn.utils.prune``) are not.
    ValueError
        AttnScale is already there, several blocks share a layer, ``init`` is not finite, or ``blocks`` is empty or out of range.
    RuntimeError
        A trial shows that the attention bypasses its ``qkv``.
    NotImplementedError
        Later, when the model is called with an attention mask, or causally: the mean is over all tokens.

    Whatever is raised here, the model is as it was before.
    """
    rewrite_qkv(model, blocks, ScaledQKV, init, averages=True)
    return model


def apply_featscale(
    model: nn.Module,
    *,
    init_dc: float = 0.0,
    init_hc: float = 0.0,
    gain: float = 1.0,
    blocks: Sequence[int] | None = None,
) -> nn.Module:
    """Add FeatScale to a timm VisionTransformer, in place; at 0 its outputs do not change.

    Parameters
    ----------
    model : nn.Module
        Any timm VisionTransformer with plain softmax attention.
    init_dc, init_hc : float
        Initial s and t.
    gain : float
        1 is the paper's formula. 2 applies the correction twice, as the authors' released DeiT models do: the same
        functions with twice the step on s and t.
    blocks : sequence of int, optional
        Blocks to treat; all by default.

    Returns
    -------
    nn.Module
        The same model; new parameters ``blocks.<l>.attn.proj_drop.s`` and ``.t`` (dim,).

    Raises
    ------
    TypeError, ValueError, RuntimeError, NotImplementedError
        As :func:`apply_attnscale`, for the module ``proj_drop`` at the end of the attention.
    """
    require_finite(init_dc=init_dc, init_hc=init_hc, gain=gain)
    rewrite_output(model, blocks, lambda p, like: FeatScale(p, like, init_dc, init_hc, gain), averages=True)
    return model


SCALES = ("omega", "s", "t", "gain")


def scale_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the added parameters by name: ω of AttnScale, s and t of FeatScale, and the gains of the controls."""
    return {
        f"{path}.{name}": parameter
        for path, module in model.named_modules()
        if isinstance(module, RewrittenQKV | RewrittenOutput)
        for name, parameter in module.named_parameters(recurse=False)
        if name in SCALES
    }


def param_groups(model: nn.Module, lr: float, weight_decay: float, scale_lr_mult: float = 1.0) -> list[dict[str, Any]]:
    """Return parameter groups for an optimiser: vectors and scales without weight decay, scales at their own rate.

    Parameters
    ----------
    lr, weight_decay : float
        Of the ordinary weights.
    scale_lr_mult : float
        Learning rate of ω, s and t relative to ``lr``.
    """
    scales = {id(parameter) for parameter in scale_parameters(model).values()}
    exempt = without_weight_decay(model)
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    scaled: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if id(parameter) in scales:
            scaled.append(parameter)
        elif parameter.ndim <= 1 or name in exempt:
            plain.append(parameter)
        else:
            decayed.append(parameter)
    groups = [
        {"params": decayed, "lr": lr, "weight_decay": weight_decay},
        {"params": plain, "lr": lr, "weight_decay": 0.0},
        {"params": scaled, "lr": lr * scale_lr_mult, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def without_weight_decay(model: Any) -> set[str]:
    """Names that a timm model exempts from weight decay: position embedding, class token and so on."""
    return set(model.no_weight_decay()) if hasattr(model, "no_weight_decay") else set()


def remove_scales(model: nn.Module) -> nn.Module:
    """Turn a scaled model back into the plain timm model, in place.

    Raises
    ------
    ValueError
        Some scale is not 0, so the plain model would compute something else; names the first. Or a scaled layer is parametrised.
    """
    for name, parameter in scale_parameters(model).items():
        if bool((parameter != 0).any()):
            raise ValueError(f"{name} is not 0: without it the model would compute something else")
    for path, layer in model.named_modules():
        if isinstance(layer, RewrittenQKV) and "parametrizations" in layer._modules:
            raise ValueError(f"{path} is parametrised: call torch.nn.utils.parametrize.remove_parametrizations first")
    module: Any
    for module in list(model.modules()):
        if isinstance(module, RewrittenQKV):
            module.plain()
        dropout = getattr(module, "proj_drop", None)
        if isinstance(dropout, RewrittenOutput):
            module.proj_drop = nn.Dropout(dropout.p).train(dropout.training)
            move_hooks(dropout, module.proj_drop)
        for key, hook in list(module._forward_pre_hooks.items()):
            if hook is refuse_masks:
                del module._forward_pre_hooks[key]
                module._forward_pre_hooks_with_kwargs.pop(key, None)
    return model
