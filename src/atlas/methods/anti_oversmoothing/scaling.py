"""AttnScale and FeatScale on timm vision transformers, without an n × n map and without leaving fused attention.

AttnScale (Wang et al., ICLR 2022, Sec. 3.1). With Â = J + (1 + ω)(A − J) and rows of A that sum to 1,

    Â V = A V′,   V′ = DC[V] + (1 + ω) HC[V] = V + ω (V − mean V):

amplify the high frequencies of V, then attend as ever. So the module that projects to queries, keys and values is swapped
for one that also rewrites V, and every attention kernel, normalisation of queries and keys, and position bias keeps working.

FeatScale (Sec. 3.2). SA′ = SA + s ⊙ DC[SA] + t ⊙ HC[SA] = (1 + t) ⊙ SA + (s − t) ⊙ mean SA, after the output projection and its
dropout, before LayerScale, drop-path and the residual sum: the last module of the attention is swapped.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from atlas.nn.vit import plain_attentions, transformer_blocks

PROBE_TOKENS = 5
PROBE_TOLERANCE = 1e-3


def token_mean(tokens: Tensor) -> Tensor:
    """Mean over the token axis (−2), kept; accumulated in float32 under mixed precision, in the dtype of ``tokens``."""
    if tokens.dtype in (torch.float16, torch.bfloat16):
        return tokens.mean(-2, keepdim=True, dtype=torch.float32).to(tokens.dtype)
    return tokens.mean(-2, keepdim=True)


class ScaledQKV(nn.Linear):
    """Projection to queries, keys and values that amplifies the high frequencies of the values, head by head.

    Shares weight and bias with the projection that it replaces; adds ``omega`` (heads,). ``value_dim`` is the width of a head's
    values.
    """

    def __init__(self, qkv: nn.Linear, heads: int, init: float) -> None:
        super().__init__(qkv.in_features, qkv.out_features, bias=qkv.bias is not None, device="meta")
        self.weight, self.bias = qkv.weight, qkv.bias
        self.omega = nn.Parameter(qkv.weight.new_full((heads,), init))
        self.value_dim = qkv.out_features // (3 * heads)

    def forward(self, x: Tensor) -> Tensor:
        """Project (…, tokens, dim) to (…, tokens, queries + keys + values), each heads · its width."""
        projected = functional.linear(x, self.weight, self.bias)
        width = self.omega.numel() * self.value_dim
        values = projected[..., -width:]
        omega = self.omega.repeat_interleave(self.value_dim).to(values.dtype)
        high = values - token_mean(values)
        if not torch.is_grad_enabled():  # nothing will ask for the values as they were
            values.addcmul_(high, omega)
            return projected
        return torch.cat((projected[..., :-width], torch.addcmul(values, high, omega)), -1)

    def narrowed(self, weight: Tensor, bias: Tensor | None, heads: Tensor, value_dim: int) -> ScaledQKV:
        """The same rewriting for some of the heads, with a projection and a width of values of their own."""
        small: ScaledQKV = narrowed_copy(self, weight, bias, value_dim)
        small.omega = nn.Parameter(self.omega.detach()[heads.to(self.omega.device)], self.omega.requires_grad)
        return small


def narrowed_copy(qkv: nn.Linear, weight: Tensor, bias: Tensor | None, value_dim: int) -> Any:
    """Copy a projection and give the copy another weight (out, in), bias (out,) and width of values."""
    small: Any = copy.deepcopy(qkv)
    small.weight = nn.Parameter(weight.detach().clone(), qkv.weight.requires_grad)
    small.bias = None if bias is None else nn.Parameter(bias.detach().clone(), qkv.bias.requires_grad)
    small.out_features, small.value_dim = len(weight), value_dim
    return small


class FeatScale(nn.Dropout):
    """Dropout of the attention output, then re-weighting of its mean and mean-free parts; ``s`` and ``t`` are (dim,)."""

    def __init__(self, p: float, like: Tensor, init_dc: float, init_hc: float, gain: float) -> None:
        super().__init__(p)
        self.gain = gain
        self.s = nn.Parameter(like.new_full((like.shape[0],), init_dc))
        self.t = nn.Parameter(like.new_full((like.shape[0],), init_hc))

    def forward(self, x: Tensor) -> Tensor:
        """Re-weight (…, tokens, dim)."""
        x = super().forward(x)
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
        Names the blocks whose attention is not plain softmax attention with one fused ``qkv`` projection.
    ValueError
        AttnScale is already there, ``init`` is not finite, or ``blocks`` is empty or out of range.
    RuntimeError
        A trial shows that the attention bypasses the swapped projection.
    """
    require_finite(init=init)
    attentions = plain_attentions(model, chosen_blocks(model, blocks))
    for path, attention in attentions:
        if type(attention.qkv) is not nn.Linear:
            raise ValueError(f"{path}.qkv is a {type(attention.qkv).__name__}: its values are already rewritten")
    for path, attention in attentions:
        plain = attention.qkv
        attention.qkv = ScaledQKV(plain, attention.num_heads, init)
        try:
            _probe(model, path, attention)
        except RuntimeError:
            attention.qkv = plain
            raise
        attention.register_forward_pre_hook(_refuse_masks, with_kwargs=True)
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
    TypeError, ValueError
        As :func:`apply_attnscale`.
    """
    require_finite(init_dc=init_dc, init_hc=init_hc, gain=gain)
    swap_proj_drop(
        plain_attentions(model, chosen_blocks(model, blocks)),
        lambda p, like: FeatScale(p, like, init_dc, init_hc, gain),
    )
    return model


def swap_proj_drop(attentions: list[tuple[str, Any]], make: Any) -> None:
    """Replace the last module of attentions by ``make(dropout probability, a (dim, …) tensor like the weights)``."""
    for path, attention in attentions:
        if type(attention.proj_drop) not in (nn.Dropout, nn.Identity):
            raise ValueError(f"{path}.proj_drop is a {type(attention.proj_drop).__name__}: the output is already scaled")
    for _, attention in attentions:
        p = attention.proj_drop.p if isinstance(attention.proj_drop, nn.Dropout) else 0.0
        replacement = make(p, attention.proj.weight)
        replacement.train(attention.training)
        attention.proj_drop = replacement


SCALES = ("omega", "s", "t", "gain")


def scale_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the added parameters by name: ω of AttnScale, s and t of FeatScale, and the gains of the controls."""
    added: tuple[type[nn.Module], ...] = (ScaledQKV, FeatScale, *_control_types())
    return {
        f"{path}.{name}": parameter
        for path, module in model.named_modules()
        if isinstance(module, added)
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
        Some scale is not 0, so the plain model would compute something else; names the first.
    """
    for name, parameter in scale_parameters(model).items():
        if bool((parameter != 0).any()):
            raise ValueError(f"{name} is not 0: without it the model would compute something else")
    module: Any
    for module in list(model.modules()):
        qkv = getattr(module, "qkv", None)
        if isinstance(qkv, nn.Linear) and type(qkv) is not nn.Linear:
            module.qkv = plain_linear(qkv)
        dropout = getattr(module, "proj_drop", None)
        if isinstance(dropout, nn.Dropout) and type(dropout) is not nn.Dropout:
            module.proj_drop = nn.Dropout(dropout.p).train(dropout.training)
        for key, hook in list(module._forward_pre_hooks.items()):
            if hook is _refuse_masks:
                del module._forward_pre_hooks[key]
                module._forward_pre_hooks_with_kwargs.pop(key, None)
    return model


def plain_linear(linear: nn.Linear) -> nn.Linear:
    """Return an ordinary linear layer that shares weight and bias with a rewritten one."""
    plain = nn.Linear(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
    plain.weight, plain.bias = linear.weight, linear.bias
    return plain.train(linear.training)


def chosen_blocks(model: nn.Module, blocks: Sequence[int] | None) -> list[int] | None:
    """Validate a choice of blocks.

    Raises
    ------
    ValueError
        It is empty, or names a block that the model does not have.
    """
    if blocks is None:
        return None
    depth = len(transformer_blocks(model))
    chosen = list(blocks)
    if not chosen or not all(0 <= index < depth for index in chosen):
        raise ValueError(f"blocks must name some of 0 … {depth - 1}, not {chosen}")
    return chosen


def require_finite(**values: float) -> None:
    """Raise a ``ValueError`` that names the first value which is not finite."""
    for name, value in values.items():
        if not math.isfinite(value):
            raise ValueError(f"{name} must be finite, not {value}")


@torch.no_grad()
def _probe(model: Any, path: str, attention: Any) -> None:
    """At ω = −1 all rows of the attention output must be equal; if not, the swap has been bypassed."""
    qkv = cast("ScaledQKV", attention.qkv)
    relative = getattr(attention, "rel_pos", None) is not None
    tokens = model.pos_embed.shape[1] if not relative and getattr(model, "pos_embed", None) is not None else None
    count = model.patch_embed.num_patches + model.num_prefix_tokens if relative or tokens is None else PROBE_TOKENS
    kept, was_training = qkv.omega.clone(), attention.training
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn(1, count, qkv.in_features, generator=generator).to(qkv.weight)
    attention.eval()
    try:
        qkv.omega.fill_(-1)
        output = attention(probe)
    finally:
        qkv.omega.copy_(kept)
        attention.train(was_training)
    spread = float((output - output.mean(1, keepdim=True)).abs().max())
    if spread > PROBE_TOLERANCE * max(1.0, float(output.abs().max())):
        raise RuntimeError(f"{path} ({type(attention).__name__}) bypasses its qkv module: AttnScale would have no effect")


def _refuse_masks(attention: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
    mask = options.get("attn_mask", arguments[1] if len(arguments) > 1 else None)
    if options.get("is_causal", False) or mask is not None:
        raise NotImplementedError("AttnScale on masked or causal attention: use attnscale_sdpa with a key-padding mask")


def _control_types() -> tuple[type[nn.Module], ...]:
    from atlas.methods.anti_oversmoothing.controls import HeadGainQKV, OutputGain

    return HeadGainQKV, OutputGain
