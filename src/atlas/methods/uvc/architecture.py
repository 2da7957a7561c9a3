"""Which vision transformers can be compressed exactly, their sizes, and where their prunable weights are."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from atlas.methods.uvc.errors import UnsupportedArchitectureError
from atlas.methods.uvc.gates import GatedBlock
from atlas.nn.t2t import TokensToTokens

PerBlock = int | tuple[int, ...]


@dataclass(frozen=True)
class ViTShape:
    """The sizes of a vision transformer that its cost depends on.

    Attributes
    ----------
    depth, embed_dim : int
        Number of blocks L, and width D.
    heads, head_dim, mlp_dim : int or tuple of int
        H, d and M; a tuple gives one value per block where blocks differ.
    tokens, patches : int
        All tokens N (patches, class, distillation and register tokens), and patches N_p alone.
    patch, in_chans : int
        Side of a patch P, and channels C.
    neuron_layers : int
        Layers that a hidden neuron has a row or a column of: 2, or 3 where another gates it.
    stem_macs : int, optional
        What comes before the blocks, in multiply-accumulates per image, where it is no plain embedding of patches.
    """

    depth: int
    heads: PerBlock
    head_dim: PerBlock
    embed_dim: int
    mlp_dim: PerBlock
    tokens: int
    patches: int
    patch: int
    in_chans: int
    neuron_layers: int = 2
    stem_macs: int | None = None

    def __post_init__(self) -> None:
        for name in ("depth", "embed_dim", "tokens", "patches", "patch", "in_chans"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("heads", "head_dim", "mlp_dim"):
            values = self.per_block(name)
            if len(values) != self.depth or min(values) < 1:
                raise ValueError(f"{name} must be positive, one for all or one for each of {self.depth} blocks, not {values}")

    @classmethod
    def from_timm(cls, model: Any, img_size: int | None = None) -> ViTShape:
        """Read the shape of a timm VisionTransformer, Eva or T2T-ViT, at its own image size or another.

        Raises
        ------
        UnsupportedArchitectureError
            A block is of a kind that cannot be pruned; see :func:`require_supported`.
        ValueError
            ``img_size`` is no multiple of the patch side, or another than a T2T-ViT was built for.
        """
        blocks = require_supported(model)
        if isinstance(model.patch_embed, TokensToTokens):
            return cls._from_t2t(model, blocks, img_size)
        kernel = model.patch_embed.proj.weight
        side = int(kernel.shape[-1])
        if kernel.shape[-2] != side:
            raise UnsupportedArchitectureError(f"patch_embed.proj: patches of {tuple(kernel.shape[-2:])} are not square")
        if img_size is not None and (img_size < side or img_size % side):
            raise ValueError(f"img_size {img_size} is not a multiple of the patch side {side}")
        patches = int(model.patch_embed.num_patches) if img_size is None else (img_size // side) ** 2
        return cls(
            embed_dim=int(kernel.shape[0]),
            tokens=patches + int(model.num_prefix_tokens),
            patches=patches,
            patch=side,
            in_chans=int(kernel.shape[1]),
            **_block_sizes(blocks),
        )

    @classmethod
    def _from_t2t(cls, model: Any, blocks: list[Any], img_size: int | None) -> ViTShape:
        """The shape of a T2T-ViT, whose tokens-to-token module is never pruned."""
        stem: TokensToTokens = model.patch_embed
        if img_size not in (None, stem.img_size[0]):
            raise ValueError(f"img_size {img_size} is another than the {stem.img_size[0]} that this T2T-ViT was built for")
        return cls(
            embed_dim=stem.project.out_features,
            tokens=stem.num_patches + int(model.num_prefix_tokens),
            patches=stem.num_patches,
            patch=stem.patch_size[0],
            in_chans=stem.in_chans,
            stem_macs=stem.macs,
            **_block_sizes(blocks),
        )

    def per_block(self, name: str) -> tuple[int, ...]:
        """Return ``heads``, ``head_dim`` or ``mlp_dim`` of every block."""
        value: PerBlock = getattr(self, name)
        return (value,) * self.depth if isinstance(value, int) else value

    @cached_property
    def widest(self) -> tuple[int, int, int]:
        """Largest number of heads, dims of a head and neurons of any block: the sizes of padded tensors."""
        return max(self.per_block("heads")), max(self.per_block("head_dim")), max(self.per_block("mlp_dim"))

    def dims_exist(self) -> Tensor:
        """(depth, heads, head_dim) bool: which dims a block has, where blocks differ."""
        heads, dims, _ = self.widest
        exist = torch.zeros(self.depth, heads, dims, dtype=torch.bool)
        for layer, (own, width) in enumerate(zip(self.per_block("heads"), self.per_block("head_dim"), strict=True)):
            exist[layer, :own, :width] = True
        return exist

    def neurons_exist(self) -> Tensor:
        """(depth, mlp_dim) bool: which neurons a block has, where blocks differ."""
        own = torch.tensor(self.per_block("mlp_dim"))
        return torch.arange(self.widest[2]) < own[:, None]

    @property
    def embed_macs(self) -> int:
        """Multiply-accumulates of what comes before the blocks, per image."""
        return self.stem_macs if self.stem_macs is not None else self.patches * self.embed_dim * self.in_chans * self.patch**2

    @property
    def head_macs(self) -> int:
        """What one dim of queries and keys of one head costs: two projections, and its part of QKᵀ."""
        return 2 * self.tokens * self.embed_dim + self.tokens**2

    @property
    def dim_macs(self) -> int:
        """What one dim of values costs: its projection, its part of AV, and its column of the output projection."""
        return 2 * self.tokens * self.embed_dim + self.tokens**2

    @property
    def neuron_macs(self) -> int:
        """What one hidden neuron costs: a row of fc1, one more where it is gated, and a column of fc2."""
        return self.neuron_layers * self.tokens * self.embed_dim

    def block_macs(self, layer: int) -> int:
        """Return the multiply-accumulates of one dense block, per image."""
        width = self.per_block("heads")[layer] * self.per_block("head_dim")[layer]
        return width * (self.head_macs + self.dim_macs) + self.per_block("mlp_dim")[layer] * self.neuron_macs

    @cached_property
    def full_macs(self) -> int:
        """Multiply-accumulates of the dense model, per image."""
        return self.embed_macs + sum(self.block_macs(layer) for layer in range(self.depth))


def plain_block(block: Any) -> Any:
    """Return the block itself, without the gate around it."""
    return block.block if isinstance(block, GatedBlock) else block


def require_supported(model: Any) -> list[Any]:
    """Return the blocks of a timm VisionTransformer, Eva (EVA-02, DINOv3, Perception Encoder) or T2T-ViT, without gates.

    Raises
    ------
    UnsupportedArchitectureError
        It is none, or some part would make pruning inexact: patches that come from another network (hybrids), fused or parallel
        blocks, gated or normalised attention, heads that share keys and values, rotations of a block's own, feed-forwards with an
        inner norm, values that another module rewrites, layers that are wrapped or shared, weights that are computed anew for
        every pass (pruning masks, weight norm). Names the path.
    """
    from timm.layers import PatchEmbed
    from timm.models.eva import Eva
    from timm.models.vision_transformer import VisionTransformer

    if not isinstance(model, VisionTransformer | Eva):
        raise UnsupportedArchitectureError(f"{type(model).__name__} is not a timm VisionTransformer, nor Eva or T2T-ViT")
    stem = model.patch_embed
    if not isinstance(stem, TokensToTokens) and not (isinstance(stem, PatchEmbed) and isinstance(stem.proj, nn.Conv2d)):
        kind = type(stem).__name__
        raise UnsupportedArchitectureError(f"patch_embed: {kind} is not timm's PatchEmbed: what it costs is not known")
    if getattr(model, "rope_mixed", False):
        raise UnsupportedArchitectureError(
            "rope: every block and head has rotations of its own, which would move with what is removed"
        )
    blocks = [plain_block(block) for block in model.blocks]
    if not blocks:
        raise UnsupportedArchitectureError(f"{type(model).__name__} has no blocks")
    paths: dict[int, str] = {}
    for index, block in enumerate(blocks):
        _require_block(block, f"blocks.{index}")
        for part, layer in pruned_layers(block).items():
            first = paths.setdefault(id(layer), f"blocks.{index}.{part}")
            if first != f"blocks.{index}.{part}":
                raise UnsupportedArchitectureError(f"blocks.{index}.{part} is the same module as {first}: blocks share it")
    if len({is_gated_mlp(block.mlp) for block in blocks}) > 1:
        raise UnsupportedArchitectureError(
            "blocks: some feed-forwards are gated and some are not: their neurons cost differently"
        )
    return blocks


def pruned_layers(block: Any) -> dict[str, Any]:
    """The layers of a block that become smaller, by their path in it."""
    names = ["attn.qkv"] if getattr(block.attn, "qkv", None) is not None else ["attn.q_proj", "attn.k_proj", "attn.v_proj"]
    names += ["attn.proj", *(f"mlp.{name}" for name in first_layers(block.mlp)), "mlp.fc2"]
    return {name: block.get_submodule(name) for name in names}


def first_layers(mlp: Any) -> dict[str, nn.Linear]:
    """The layers of a feed-forward from tokens to neurons, by name: one, or two where values and gates have their own."""
    names = ("fc1_g", "fc1_x") if hasattr(mlp, "fc1_g") else ("fc1",)
    return {name: getattr(mlp, name) for name in names}


def is_gated_mlp(mlp: Any) -> bool:
    """Whether every neuron of a feed-forward is the product of two."""
    return bool(sum(layer.out_features for layer in first_layers(mlp).values()) == 2 * mlp.fc2.in_features)


def _require_block(block: Any, path: str) -> None:
    from timm.layers import AttentionRope, GluMlp, Mlp, SwiGLU
    from timm.models.eva import EvaAttention, EvaBlock
    from timm.models.vision_transformer import Attention, Block

    def refuse(part: str, why: str) -> UnsupportedArchitectureError:
        return UnsupportedArchitectureError(f"{path}{part}: {why}")

    if not isinstance(block, Block | EvaBlock):
        raise refuse("", f"{type(block).__name__} is not timm's sequential pre-norm Block")
    attention: Any = block.attn
    mlp: Any = block.mlp
    if type(attention) not in ((Attention,) if isinstance(block, Block) else (EvaAttention, AttentionRope)):
        raise refuse(".attn", f"{type(attention).__name__} is not timm's plain Attention")
    if getattr(attention, "gate", None) is not None:
        raise refuse(".attn.gate", "the gate of gated attention ties its output to dims that would be removed")
    if not isinstance(getattr(attention, "norm", nn.Identity()), nn.Identity):
        raise refuse(".attn.norm", "scale_norm normalises over dims that would be removed")
    if getattr(attention, "num_kv_heads", attention.num_heads) != attention.num_heads:
        raise refuse(".attn", "heads share keys and values: no head can be removed alone")
    if type(mlp) not in (Mlp, GluMlp, SwiGLU) or not isinstance(mlp.fc2, nn.Linear):
        raise refuse(".mlp", f"{type(mlp).__name__} is not timm's plain Mlp of two linear layers, nor its GluMlp or SwiGLU")
    for part, layer in pruned_layers(block).items():
        narrows = part == "attn.qkv" and hasattr(layer, "narrowed") and isinstance(layer, nn.Linear)
        if "parametrizations" in getattr(layer, "_modules", {}) or not (type(layer) is nn.Linear or narrows):
            raise refuse(
                f".{part}", f"{type(layer).__name__} is not a plain nn.Linear, and cannot be cut to some heads or neurons"
            )
        if not isinstance(layer._parameters.get("weight"), nn.Parameter):
            raise refuse(
                f".{part}", "its weight is computed anew for every pass (pruning mask, weight norm): make it permanent first"
            )
    if not isinstance(getattr(mlp, "norm", nn.Identity()), nn.Identity):
        raise refuse(".mlp.norm", "an inner norm normalises over neurons that would be removed")
    neurons = sum(layer.out_features for layer in first_layers(mlp).values())
    if neurons != mlp.fc2.in_features * (1 if type(mlp) is Mlp else 2):
        raise refuse(".mlp", "its activation gates one half of the neurons with the other")


def _block_sizes(blocks: list[Any]) -> dict[str, Any]:
    """The sizes of a shape that its blocks say."""
    heads = [int(block.attn.num_heads) for block in blocks]
    return {
        "depth": len(blocks),
        "heads": _common(heads),
        "head_dim": _common([block.attn.proj.in_features // own for block, own in zip(blocks, heads, strict=True)]),
        "mlp_dim": _common([int(block.mlp.fc2.in_features) for block in blocks]),
        "neuron_layers": 3 if is_gated_mlp(blocks[0].mlp) else 2,
    }


def scored_weights(model: Any) -> tuple[list[Tensor], list[Tensor]]:
    """Return ``attn.proj.weight`` (D, A) and ``mlp.fc2.weight`` (D, M) of every block."""
    blocks = [plain_block(block) for block in model.blocks]
    return [block.attn.proj.weight for block in blocks], [block.mlp.fc2.weight for block in blocks]


def _common(values: list[int]) -> PerBlock:
    """One value for all blocks, or one per block where they differ."""
    return values[0] if len(set(values)) == 1 else tuple(values)
