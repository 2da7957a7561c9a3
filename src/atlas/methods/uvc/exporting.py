"""From a plan to an ordinary, smaller model; and the masked model that it must agree with.

Per kept block: rows of queries and keys of kept heads; rows of values and columns of the output projection of kept dims; rows of
fc1 and columns of fc2 of kept neurons. The softmax keeps the dense model's scale. Biases of removed neurons and values need no
compensation: what they fed has no weight in the masked model.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from timm.layers import AttentionRope, apply_rot_embed_cat
from timm.models.eva import EvaAttention
from timm.models.vision_transformer import Attention
from torch import Tensor, nn
from torch.nn import functional

from atlas.methods.uvc.architecture import ViTShape, first_layers, is_gated_mlp, require_supported
from atlas.methods.uvc.errors import ExportError, PlanError
from atlas.methods.uvc.gates import is_gated
from atlas.methods.uvc.plan import CompressionPlan
from atlas.methods.uvc.repair import uniform_widths
from atlas.methods.uvc.scores import unit_scores
from atlas.methods.uvc.settings import BudgetSettings, ValueLayout
from atlas.nn.counts import are_flops_counted

DEFAULTS = BudgetSettings()
TOLERANCE = 1e-4
"""Largest difference of an exported model's outputs from the masked one's, relative to 1 + their maximum."""


class CompactAttention(Attention):
    """timm's attention whose values are narrower than its queries and keys.

    Attributes
    ----------
    value_dim : int
        Width of a head's values; ``qkv`` gives heads · (2 · head_dim + value_dim) outputs, queries first.
    """

    value_dim: int

    @classmethod
    def of(cls, attention: Attention, value_dim: int) -> CompactAttention:
        """Turn a copied attention into a compact one: hooks, norms, dropouts and flags stay."""
        attention.__class__ = cls
        compact: Any = attention
        compact.value_dim = value_dim
        return compact

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Attend over the tokens: (batch, tokens, dim) → the same."""
        batch, tokens, _ = x.shape
        inner = self.num_heads * self.head_dim
        query, key, value = self.qkv(x).split((inner, inner, self.num_heads * self.value_dim), -1)
        query, key = (self._by_head(part) for part in (query, key))
        query, key, value = self.q_norm(query), self.k_norm(key), self._by_head(value)
        out = self._attend(query, key, value, attn_mask, is_causal)
        out = out.transpose(1, 2).reshape(batch, tokens, self.num_heads * self.value_dim)
        return self.proj_drop(self.proj(out))

    def _by_head(self, part: Tensor) -> Tensor:
        """(batch, tokens, heads · width) → (batch, heads, tokens, width)."""
        batch, tokens, _ = part.shape
        return part.view(batch, tokens, self.num_heads, -1).transpose(1, 2)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, is_causal: bool) -> Tensor:
        dropout = self.attn_drop.p if self.training else 0.0
        value = _widened(value, self.head_dim - self.value_dim)
        out = functional.scaled_dot_product_attention(query, key, value, attn_mask, dropout, is_causal, scale=self.scale)
        return out[..., : self.value_dim]


class CompactRotary(nn.Module):
    """timm's attentions with rotary positions, whose values are narrower than queries and keys, and which are so few heads.

    Attributes
    ----------
    value_dim : int
        Width of a head's values.
    """

    value_dim: int
    num_heads: int
    head_dim: int
    scale: float
    num_prefix_tokens: int
    q_norm: nn.Module
    k_norm: nn.Module
    attn_drop: nn.Dropout
    proj: Any
    proj_drop: Any

    def forward(self, x: Tensor, rope: Tensor | None = None, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Attend over the tokens: (batch, tokens, dim) → the same."""
        query, key, value = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in self._projected(x))
        query, key = self.q_norm(query), self.k_norm(key)
        if rope is not None:
            query, key = (self._rotated(part, rope).type_as(value) for part in (query, key))
        dropout = self.attn_drop.p if self.training else 0.0
        value = _widened(value, self.head_dim - self.value_dim)
        out = functional.scaled_dot_product_attention(query, key, value, attn_mask, dropout, is_causal, scale=self.scale)
        return self.proj_drop(self.proj(out[..., : self.value_dim].transpose(1, 2).flatten(-2)))  # type: ignore[no-any-return]

    def _projected(self, x: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values, (batch, tokens, heads · width) each."""
        attention: Any = self
        if attention.qkv is None:
            return attention.q_proj(x), attention.k_proj(x), attention.v_proj(x)
        inner = self.num_heads * self.head_dim
        if getattr(attention, "q_bias", None) is None:
            projected = attention.qkv(x)
        else:
            bias = torch.cat((attention.q_bias, attention.k_bias, attention.v_bias))
            projected = functional.linear(x, attention.qkv.weight, bias)
        return tuple(projected.split((inner, inner, self.num_heads * self.value_dim), -1))

    def _rotated(self, part: Tensor, rope: Tensor) -> Tensor:
        """Rotate all but the prefix tokens of (batch, heads, tokens, width)."""
        prefix = self.num_prefix_tokens
        half = bool(getattr(self, "rotate_half", False))
        return torch.cat((part[:, :, :prefix], apply_rot_embed_cat(part[:, :, prefix:], rope, half=half)), 2)


class CompactEvaAttention(CompactRotary, EvaAttention):
    """EVA's attention with the heads and widths that a compression plan leaves."""


class CompactAttentionRope(CompactRotary, AttentionRope):
    """The attention of DINOv3 and the Perception Encoder."""


ROTARY = {EvaAttention: CompactEvaAttention, AttentionRope: CompactAttentionRope}


@torch.fx.wrap  # one node of a traced graph: the device is known only when the graph runs
def _widened(value: Tensor, narrow: int) -> Tensor:
    """Values as wide as queries on a CPU, whose fused kernel wants them so: zeros cost less than leaving it."""
    widen = narrow and value.device.type == "cpu" and not are_flops_counted()
    return functional.pad(value, (0, narrow)) if widen else value


def export(model: Any, plan: CompressionPlan, v_layout: ValueLayout = DEFAULTS.v_layout, check: bool = True) -> nn.Module:
    """Return a smaller copy of a timm VisionTransformer, Eva or T2T-ViT, an ordinary module.

    Parameters
    ----------
    model : nn.Module
        The dense model; not changed.
    plan : CompressionPlan
        What to keep.
    v_layout : {"padded", "uniform"}
        Where heads keep different numbers of dims, pad values with zero rows and columns to the widest of the block; or keep
        the best-scored dims of every head, the same number for all (:func:`.repair.uniform_widths`), which wastes nothing.
    check : bool
        Whether to compare with the masked model on random images.

    Raises
    ------
    RuntimeError
        The model still has gates.
    PlanError
        The plan does not fit the model, or ``v_layout`` is unknown.
    ExportError
        The outputs differ from the masked model's by more than 1e-4 · (1 + their maximum).
    """
    if is_gated(model):
        raise RuntimeError("the model still has gates: call remove_gates first")
    if v_layout not in ("padded", "uniform"):
        raise PlanError(f"v_layout must be 'padded' or 'uniform', not {v_layout!r}")
    require_supported(model)
    shape = ViTShape.from_timm(model)
    plan.validate(shape)
    if v_layout == "uniform":
        plan = uniform_widths(plan, shape, unit_scores(model, shape))
    small = copy.deepcopy(model)
    kept = plan.keep.nonzero().flatten().tolist()
    with torch.no_grad():
        for layer in kept:
            _narrow_attention(small.blocks[layer].attn, plan.dims[layer].cpu())
            _narrow_mlp(small.blocks[layer].mlp, plan.neurons[layer].cpu())
    blocks = [small.blocks[layer] for layer in kept]
    small.blocks = nn.Sequential(*blocks) if isinstance(small.blocks, nn.Sequential) else nn.ModuleList(blocks)
    if isinstance(getattr(small, "feature_info", None), list):
        small.feature_info = [dict(small.feature_info[layer], module=f"blocks.{i}") for i, layer in enumerate(kept)]
    if check:
        _verify(model, plan, small)
    return small


class Skipped(nn.Module):
    """Stands in a masked model where a block is left out."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the tokens, (batch, tokens, dim), as they are."""
        return x


@torch.no_grad()
def masked(model: Any, plan: CompressionPlan) -> nn.Module:
    """Return a copy of full size whose removed units feed nothing forward, and whose removed blocks do nothing."""
    copied = copy.deepcopy(model)
    zero_removed(copied, plan)
    for layer in (~plan.keep).nonzero().flatten().tolist():
        copied.blocks[layer] = Skipped()
    return copied


@torch.no_grad()
def zero_removed(model: Any, plan: CompressionPlan) -> None:
    """Set to 0, in place, what removed dims and neurons feed forward."""
    for layer, block in enumerate(model.blocks):
        heads, width = block.attn.num_heads, block.attn.proj.in_features // block.attn.num_heads
        dims = plan.dims[layer, :heads, :width].reshape(-1)
        block.attn.proj.weight[:, ~dims.to(block.attn.proj.weight.device)] = 0
        neurons = plan.neurons[layer, : block.mlp.fc2.in_features]
        block.mlp.fc2.weight[:, ~neurons.to(block.mlp.fc2.weight.device)] = 0


@torch.no_grad()
def _verify(model: Any, plan: CompressionPlan, small: nn.Module) -> None:
    """Compare an exported model with the masked one on random images, in evaluation mode and single precision, whoever asks."""
    images = _random_images(model, 2)
    with torch.autocast(images.device.type, enabled=False):
        expected = masked(model, plan).float().eval()(images)
        exported = copy.deepcopy(small).float().eval()(images)
    error, scale = float((expected - exported).abs().max()), float(expected.abs().max())
    if not error <= TOLERANCE * (1 + scale):
        raise ExportError(f"the exported model differs from the masked one by {error:.3g}, where outputs reach {scale:.3g}")


def _random_images(model: Any, count: int) -> Tensor:
    """Random float32 images (count, channels, height, width) of a timm model's own size and device; the same every time."""
    height, width = model.patch_embed.img_size
    stem = model.patch_embed
    channels = stem.proj.in_channels if hasattr(stem, "proj") else stem.in_chans
    random = torch.randn(count, channels, height, width, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    return random.to(next(model.parameters()).device)


def _narrow_attention(attention: Any, dims: Tensor) -> None:
    """Cut a copied attention down to the kept dims (H, d) of its heads."""
    count, width = attention.num_heads, attention.proj.in_features // attention.num_heads
    dims = dims[:count, :width]
    heads = dims.any(-1).nonzero().flatten()
    value_dim = int(dims.sum(-1).max())
    inner = count * width
    rows = (heads[:, None] * width + torch.arange(width)).reshape(-1)
    columns = torch.full((len(heads), value_dim), -1)  # of the output projection; −1 is a zero column
    for row, head in enumerate(heads.tolist()):
        kept = dims[head].nonzero().flatten()
        columns[row, : len(kept)] = head * width + kept
    columns = columns.reshape(-1)
    if attention.qkv is None:
        for name, index in (("q_proj", rows), ("k_proj", rows), ("v_proj", columns)):
            _resize_rows(getattr(attention, name), index)
    else:
        values = torch.where(columns >= 0, columns + 2 * inner, columns)
        _narrow_qkv(attention, torch.cat((rows, rows + inner, values)), heads, value_dim)
    for name, index in (("q_bias", rows), ("v_bias", columns)):
        if getattr(attention, name, None) is not None:
            bias = getattr(attention, name)
            setattr(attention, name, nn.Parameter(_picked(bias.detach(), index, 0).clone(), bias.requires_grad))
    if getattr(attention, "k_bias", None) is not None:
        attention.k_bias = _picked(attention.k_bias, rows, 0)
    _resize(attention.proj, _picked(attention.proj.weight, columns, 1), attention.proj.bias)
    attention.num_heads = len(heads)
    for name in ("attn_dim", "kv_dim"):
        if hasattr(attention, name):
            setattr(attention, name, len(heads) * width)
    if hasattr(attention, "num_kv_heads"):
        attention.num_kv_heads = len(heads)
    if type(attention) in ROTARY:
        attention.__class__ = ROTARY[type(attention)]
    if isinstance(attention, CompactRotary):
        attention.value_dim = value_dim
    elif value_dim < width or not hasattr(attention, "attn_dim"):
        CompactAttention.of(attention, value_dim)


def _narrow_qkv(attention: Any, index: Tensor, heads: Tensor, value_dim: int) -> None:
    """Cut a joint projection to some of its rows; one that also rewrites the values, for some of the heads."""
    qkv = attention.qkv
    if type(qkv) is nn.Linear:
        _resize_rows(qkv, index)
    else:
        bias = None if qkv.bias is None else _picked(qkv.bias, index, 0)
        attention.qkv = qkv.narrowed(_picked(qkv.weight, index, 0), bias, heads, value_dim)


def _narrow_mlp(mlp: Any, neurons: Tensor) -> None:
    """Cut a copied MLP down to its kept neurons (M,)."""
    width = mlp.fc2.in_features
    kept = neurons[:width].nonzero().flatten()
    layers = first_layers(mlp)
    both = len(layers) == 1 and is_gated_mlp(mlp)  # values and gates are halves of one layer
    for layer in layers.values():
        _resize_rows(layer, torch.cat((kept, kept + width)) if both else kept)
    _resize(mlp.fc2, _picked(mlp.fc2.weight, kept, 1), mlp.fc2.bias)


def _resize_rows(layer: nn.Linear, index: Tensor) -> None:
    """Cut a copied linear layer to some of its outputs."""
    bias = None if layer.bias is None else _picked(layer.bias, index, 0)
    _resize(layer, _picked(layer.weight, index, 0), bias)


def _picked(tensor: Tensor, index: Tensor, dim: int) -> Tensor:
    """Select along an axis; an index of −1 gives zeros."""
    index = index.to(tensor.device)
    chosen = tensor.index_select(dim, index.clamp_min(0))
    gap = index < 0
    if bool(gap.any()):
        chosen.index_fill_(dim, gap.nonzero().flatten(), 0)
    return chosen


def _resize(layer: nn.Linear, weight: Tensor, bias: Tensor | None) -> None:
    """Give a copied linear layer other weights, in place: its hooks, its mode and what of it is trainable stay."""
    layer.out_features, layer.in_features = weight.shape
    layer.weight = nn.Parameter(weight.detach().clone(), requires_grad=layer.weight.requires_grad)
    if bias is not None and layer.bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone(), requires_grad=layer.bias.requires_grad)
