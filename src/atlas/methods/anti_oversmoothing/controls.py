"""Baselines that separate frequency from plain scale: the same number of parameters at the same places, blind to frequency.

LayerScale is H. Touvron et al., *Going deeper with Image Transformers*, ICCV 2021, Eq. 4.
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
    chosen_blocks,
    move_hooks,
    require_finite,
    rewrite_output,
    rewrite_values,
)
from atlas.nn.anatomy import transformer_blocks


class HeadGainQKV(RewrittenQKV):
    """Scales the values head by head: control for AttnScale. Adds ``gain`` (heads,)."""

    scales = ("gain",)
    if TYPE_CHECKING:
        gain: nn.Parameter

    def forward(self, x: Tensor) -> Tensor:
        """Project (…, tokens, dim) to (…, tokens, queries + keys + values), each heads · its width; V becomes (1 + g) V."""
        projected = self.project(x)
        width = self.gain.numel() * self.value_dim
        gain = self.gain.repeat_interleave(self.value_dim).to(projected.dtype)
        return torch.cat((projected[..., :-width], projected[..., -width:] * (1 + gain)), -1)


class OutputGain(RewrittenOutput):
    """Dropout, then a gain per channel: FeatScale with s tied to t; ``gain`` is (dim,)."""

    scales = ("gain",)

    def __init__(self, p: float, like: Tensor, init: float) -> None:
        super().__init__(p)
        self.gain = nn.Parameter(like.new_full((like.shape[0],), init))

    def forward(self, x: Tensor) -> Tensor:
        """Scale every channel of features (…, tokens, dim) by 1 + its gain, after the dropout."""
        return functional.dropout(x, self.p, self.training) * (1 + self.gain.to(x.dtype))


def apply_head_gain(model: nn.Module, *, init: float = 0.0, blocks: Sequence[int] | None = None) -> nn.Module:
    """Scale every head's output by 1 + g, in place: AttnScale's control. Errors as ``apply_attnscale``."""
    rewrite_values(model, blocks, HeadGainQKV, init)
    return model


def apply_output_gain(model: nn.Module, *, init: float = 0.0, blocks: Sequence[int] | None = None) -> nn.Module:
    """Scale every channel of the attention output by 1 + g, in place: FeatScale's control. Errors as ``apply_featscale``."""
    require_finite(init=init)
    rewrite_output(model, blocks, lambda p, like: OutputGain(p, like, init))
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
    replacements: list[tuple[Any, str, nn.Module]] = []
    block: Any
    for index, (path, block) in enumerate(transformer_blocks(model).items()):
        if chosen is not None and index not in chosen:
            continue
        for name in ("ls1", "ls2"):
            if not hasattr(block, name):
                raise TypeError(f"{path} ({type(block).__name__}) has no {name}: expected a timm ViT block")
            plain = getattr(block, name)
            if not isinstance(plain, nn.Identity):
                raise ValueError(f"{path}.{name} is a {type(plain).__name__} already")
            weight = block.attn.proj.weight
            replacement = LayerScale(weight.shape[0], init_values=init).to(weight).train(plain.training)
            move_hooks(plain, replacement)
            replacements.append((block, name, replacement))
    for block, name, layer in replacements:
        setattr(block, name, layer)
    return model
