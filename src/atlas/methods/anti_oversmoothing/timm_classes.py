"""Subclasses of timm's classes, of which its modules become instances, in place, where a rewritten layer alone would not do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from timm.models.beit import Attention as BeitAttention
from timm.models.eva import EvaAttention
from timm.models.swin_transformer import SwinTransformerBlock
from timm.models.swin_transformer_v2 import SwinTransformerV2Block
from timm.models.swin_transformer_v2 import WindowAttention as SwinV2Attention
from timm.models.swin_transformer_v2_cr import SwinTransformerV2CrBlock
from torch import Tensor, nn
from torch.nn import functional


class JoinedBias:
    """An attention whose ``qkv`` adds the biases of queries and values.

    timm's attentions of this kind call the linear function on ``qkv.weight`` and a bias that they put together, so that the
    module ``qkv`` is never called. To one of this class its forward pass finds no bias, and calls the module, which adds it as
    the attention did: the parameters stay where they are, in the attention, and in the state.
    """

    q_bias: Any = None

    def project(self, x: Tensor, weight: Tensor) -> Tensor:
        """Queries, keys and values of (…, tokens, dim), by the very operations of the attention that this one was."""
        attention: Any = self
        bias = torch.cat((attention._parameters["q_bias"], attention.k_bias, attention._parameters["v_bias"]))
        if not attention.qkv_bias_separate:
            return functional.linear(x, weight, bias)
        projected = functional.linear(x, weight)
        projected += bias
        return projected


class JoinedEvaAttention(JoinedBias, EvaAttention):
    """EVA's attention, whose joint bias is added by the module ``qkv``."""


class JoinedBeitAttention(JoinedBias, BeitAttention):
    """BEiT's attention, whose joint bias is added by the module ``qkv``."""


class JoinedSwinV2Attention(JoinedBias, SwinV2Attention):
    """The window attention of Swin v2."""


class ScaledMap:
    """A block of windows that re-weights the output of its attention once the windows are a feature map again."""

    if TYPE_CHECKING:
        featscale: nn.Module


class ScaledSwinBlock(ScaledMap, SwinTransformerBlock):
    """A block of Swin that re-weights the output of its attention."""

    def _attn(self, x: Tensor) -> Tensor:
        return self.featscale(super()._attn(x))


class ScaledSwinV2Block(ScaledMap, SwinTransformerV2Block):
    """A block of Swin v2 that re-weights the output of its attention."""

    def _attn(self, x: Tensor) -> Tensor:
        return self.featscale(super()._attn(x))


class ScaledSwinV2CrBlock(ScaledMap, SwinTransformerV2CrBlock):
    """The block of the other implementation of Swin v2 in timm."""

    def _shifted_window_attn(self, x: Tensor) -> Tensor:
        return self.featscale(super()._shifted_window_attn(x))


JOINED: dict[type, type] = {
    EvaAttention: JoinedEvaAttention,
    BeitAttention: JoinedBeitAttention,
    SwinV2Attention: JoinedSwinV2Attention,
}
MAPS: dict[type, type] = {
    SwinTransformerBlock: ScaledSwinBlock,
    SwinTransformerV2Block: ScaledSwinV2Block,
    SwinTransformerV2CrBlock: ScaledSwinV2CrBlock,
}


def become(module: Any, kinds: dict[type, type]) -> type:
    """Make a module one of the subclass of its class, in place, and return the class that it was.

    Raises
    ------
    TypeError
        Its class is none of those that ``kinds`` knows.
    """
    before = type(module)
    if before not in kinds:
        raise TypeError(f"{before.__name__} is not one of {', '.join(kind.__name__ for kind in kinds)}")
    module.__class__ = kinds[before]
    return before
