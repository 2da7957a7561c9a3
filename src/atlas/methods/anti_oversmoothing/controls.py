"""Baselines that separate frequency from plain scale: the same number of parameters at the same places, blind to frequency.

LayerScale is H. Touvron et al., *Going deeper with Image Transformers*, ICCV 2021, Eq. 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from atlas.methods.anti_oversmoothing.scaling import chosen_blocks, narrowed_copy, require_finite, swap_proj_drop
from atlas.nn.vit import plain_attentions, transformer_blocks


class HeadGainQKV(nn.Linear):
    """Projection whose values are scaled head by head: control for AttnScale; ``gain`` is (heads,)."""

    def __init__(self, qkv: nn.Linear, heads: int, init: float) -> None:
        super().__init__(qkv.in_features, qkv.out_features, bias=qkv.bias is not None, device="meta")
        self.weight, self.bias = qkv.weight, qkv.bias
        self.gain = nn.Parameter(qkv.weight.new_full((heads,), init))
        self.value_dim = qkv.out_features // (3 * heads)

    def forward(self, x: Tensor) -> Tensor:
        """Project (…, tokens, dim) to (…, tokens, queries + keys + values), each heads · its width."""
        projected = functional.linear(x, self.weight, self.bias)
        width = self.gain.numel() * self.value_dim
        gain = self.gain.repeat_interleave(self.value_dim).to(projected.dtype)
        return torch.cat((projected[..., :-width], projected[..., -width:] * (1 + gain)), -1)

    def narrowed(self, weight: Tensor, bias: Tensor | None, heads: Tensor, value_dim: int) -> HeadGainQKV:
        """The same scaling for some of the heads, with a projection and a width of values of their own."""
        small: HeadGainQKV = narrowed_copy(self, weight, bias, value_dim)
        small.gain = nn.Parameter(self.gain.detach()[heads.to(self.gain.device)], self.gain.requires_grad)
        return small


class OutputGain(nn.Dropout):
    """Dropout, then a gain per channel: FeatScale with s tied to t; ``gain`` is (dim,)."""

    def __init__(self, p: float, like: Tensor, init: float) -> None:
        super().__init__(p)
        self.gain = nn.Parameter(like.new_full((like.shape[0],), init))

    def forward(self, x: Tensor) -> Tensor:
        """Scale (…, tokens, dim)."""
        return super().forward(x) * (1 + self.gain.to(x.dtype))


def apply_head_gain(model: nn.Module, *, init: float = 0.0, blocks: Sequence[int] | None = None) -> nn.Module:
    """Scale every head's output by 1 + g, in place: AttnScale's control. Errors as ``apply_attnscale``."""
    require_finite(init=init)
    attentions = plain_attentions(model, chosen_blocks(model, blocks))
    for path, attention in attentions:
        if type(attention.qkv) is not nn.Linear:
            raise ValueError(f"{path}.qkv is a {type(attention.qkv).__name__}: its values are already rewritten")
    for _, attention in attentions:
        attention.qkv = HeadGainQKV(attention.qkv, attention.num_heads, init)
    return model


def apply_output_gain(model: nn.Module, *, init: float = 0.0, blocks: Sequence[int] | None = None) -> nn.Module:
    """Scale every channel of the attention output by 1 + g, in place: FeatScale's control. Errors as ``apply_featscale``."""
    require_finite(init=init)
    swap_proj_drop(plain_attentions(model, chosen_blocks(model, blocks)), lambda p, like: OutputGain(p, like, init))
    return model


def apply_layerscale(model: nn.Module, *, init: float = 0.1, blocks: Sequence[int] | None = None) -> nn.Module:
    """Put LayerScale on both residual branches of a timm VisionTransformer, in place.

    Parameters
    ----------
    init : float
        CaiT starts at 0.1 up to 18 layers, 1e-5 at 24 and 1e-6 beyond.

    Raises
    ------
    ValueError
        A block has LayerScale already, or as ``apply_attnscale``.
    TypeError
        A block has no place for it.
    """
    from timm.layers import LayerScale

    require_finite(init=init)
    chosen = chosen_blocks(model, blocks)
    block: Any
    for index, block in enumerate(transformer_blocks(model)):
        if chosen is not None and index not in chosen:
            continue
        for name in ("ls1", "ls2"):
            if not hasattr(block, name):
                raise TypeError(f"blocks.{index} ({type(block).__name__}) has no {name}: expected a timm ViT block")
            if not isinstance(getattr(block, name), nn.Identity):
                raise ValueError(f"blocks.{index}.{name} is a {type(getattr(block, name)).__name__} already")
            width = block.norm1.weight.shape[0]
            setattr(block, name, LayerScale(width, init_values=init).to(block.norm1.weight))
    return model
