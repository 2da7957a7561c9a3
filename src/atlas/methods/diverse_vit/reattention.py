"""Re-attention: heads exchange their attention maps, so that maps of deep layers do not become alike.

D. Zhou, B. Kang, X. Jin, L. Yang, X. Lian, Z. Jiang, Q. Hou, J. Feng, *DeepViT: Towards Deeper Vision Transformer*, arXiv
2103.11886: ``Re-Attention(Q, K, V) = Norm(Θᵀ softmax(QKᵀ/√d)) V``, with a learned Θ (heads, heads) and a batch norm over heads in
every layer.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from atlas.nn.vit import is_plain


class ReAttention(nn.Module):
    """Mixes the maps of all heads, normalises them, and drops from them as the attention did before.

    It takes the place of an attention's dropout, which sees every map after the softmax. Adds Θ with a bias, and the norm's
    weights: heads · (heads + 3) parameters.
    """

    def __init__(self, heads: int, dropout: float) -> None:
        super().__init__()
        self.mix = nn.Conv2d(heads, heads, 1)
        self.norm = nn.BatchNorm2d(heads)
        self.drop = nn.Dropout(dropout)

    @property
    def p(self) -> float:
        """Rate of the dropout of attention maps, in [0, 1]."""
        return float(self.drop.p)

    def forward(self, maps: Tensor) -> Tensor:
        """Mix maps (batch, heads, queries, keys)."""
        mixed: Tensor = self.drop(self.norm(self.mix(maps)))
        return mixed


def apply_reattention(model: Any) -> Any:
    """Put re-attention into every block of a timm VisionTransformer, in place.

    Its attentions no longer take the fused path, which makes no maps.

    Raises
    ------
    ValueError
        A block has an attention of another kind, or has re-attention already.
    """
    for index, block in enumerate(model.blocks):
        attention: Any = getattr(block, "attn", None)
        if not is_plain(attention):
            raise ValueError(f"block {index} has no plain attention of timm, but {type(attention).__name__}")
        if isinstance(attention.attn_drop, ReAttention):
            raise ValueError(f"block {index} has re-attention already")
        attention.attn_drop = ReAttention(attention.num_heads, attention.attn_drop.p).to(attention.qkv.weight.device)
        attention.fused_attn = False
    return model
