"""Which vision transformers can be compressed exactly, their sizes, and where their prunable weights are."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from atlas.methods.uvc.errors import UnsupportedArchitectureError
from atlas.methods.uvc.gates import GatedBlock

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
        """Read the shape of a timm VisionTransformer, at its own image size or another.

        Raises
        ------
        UnsupportedArchitectureError
            A block is of a kind that cannot be pruned; see :func:`require_supported`.
        """
        blocks = require_supported(model)
        kernel = model.patch_embed.proj.weight
        side = int(kernel.shape[-1])
        if kernel.shape[-2] != side:
            raise UnsupportedArchitectureError(f"patch_embed.proj: patches of {tuple(kernel.shape[-2:])} are not square")
        if img_size is not None and (img_size < side or img_size % side):
            raise ValueError(f"img_size {img_size} is not a multiple of the patch side {side}")
        patches = int(model.patch_embed.num_patches) if img_size is None else (img_size // side) ** 2
        heads = [int(block.attn.num_heads) for block in blocks]
        return cls(
            depth=len(blocks),
            heads=_common(heads),
            head_dim=_common([block.attn.proj.in_features // own for block, own in zip(blocks, heads, strict=True)]),
            embed_dim=int(kernel.shape[0]),
            mlp_dim=_common([int(block.mlp.fc2.in_features) for block in blocks]),
            tokens=patches + int(model.num_prefix_tokens),
            patches=patches,
            patch=side,
            in_chans=int(kernel.shape[1]),
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
        """Multiply-accumulates of the patch embedding, per image."""
        return self.patches * self.embed_dim * self.in_chans * self.patch**2

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
        """What one hidden neuron costs: a row of fc1 and a column of fc2."""
        return 2 * self.tokens * self.embed_dim

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
    """Return the blocks of a timm VisionTransformer, without gates.

    Raises
    ------
    UnsupportedArchitectureError
        It is none, or some part would make pruning inexact: patches that come from another network (hybrids), fused or parallel
        blocks, gated or normalised attention, gated or normalised MLPs, values that another module rewrites, layers that are
        wrapped or shared, weights that are computed anew for every pass (pruning masks, weight norm). Names the path.
    """
    from timm.layers import PatchEmbed
    from timm.models.vision_transformer import VisionTransformer

    if not isinstance(model, VisionTransformer):
        raise UnsupportedArchitectureError(f"{type(model).__name__} is not a timm VisionTransformer")
    if not isinstance(model.patch_embed, PatchEmbed) or not isinstance(model.patch_embed.proj, nn.Conv2d):
        kind = type(model.patch_embed).__name__
        raise UnsupportedArchitectureError(f"patch_embed: {kind} is not timm's PatchEmbed: what it costs is not known")
    blocks = [plain_block(block) for block in model.blocks]
    paths: dict[int, str] = {}
    for index, block in enumerate(blocks):
        _require_block(block, f"blocks.{index}")
        for part, layer in _pruned_layers(block).items():
            first = paths.setdefault(id(layer), f"blocks.{index}.{part}")
            if first != f"blocks.{index}.{part}":
                raise UnsupportedArchitectureError(f"blocks.{index}.{part} is the same module as {first}: blocks share it")
    return blocks


def _pruned_layers(block: Any) -> dict[str, Any]:
    """The layers of a block that become smaller, by their path in it."""
    return {"attn.qkv": block.attn.qkv, "attn.proj": block.attn.proj, "mlp.fc1": block.mlp.fc1, "mlp.fc2": block.mlp.fc2}


def _require_block(block: Any, path: str) -> None:
    from timm.layers import Mlp
    from timm.models.vision_transformer import Attention, Block

    def refuse(part: str, why: str) -> UnsupportedArchitectureError:
        return UnsupportedArchitectureError(f"{path}{part}: {why}")

    if not isinstance(block, Block):
        raise refuse("", f"{type(block).__name__} is not timm's sequential pre-norm Block")
    attention: Any = block.attn
    mlp: Any = block.mlp
    if type(attention) is not Attention:
        raise refuse(".attn", f"{type(attention).__name__} is not timm's plain Attention")
    if getattr(attention, "gate", None) is not None:
        raise refuse(".attn.gate", "the gate of gated attention ties its output to dims that would be removed")
    if not isinstance(getattr(attention, "norm", nn.Identity()), nn.Identity):
        raise refuse(".attn.norm", "scale_norm normalises over dims that would be removed")
    if type(mlp) is not Mlp or not isinstance(mlp.fc1, nn.Linear) or not isinstance(mlp.fc2, nn.Linear):
        raise refuse(".mlp", f"{type(mlp).__name__} is not timm's plain Mlp of two linear layers")
    for part, layer in _pruned_layers(block).items():
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
    if mlp.fc1.out_features != mlp.fc2.in_features:
        raise refuse(".mlp", "its activation gates one half of the neurons with the other")


def scored_weights(model: Any) -> tuple[list[Tensor], list[Tensor]]:
    """Return ``attn.proj.weight`` (D, A) and ``mlp.fc2.weight`` (D, M) of every block."""
    blocks = [plain_block(block) for block in model.blocks]
    return [block.attn.proj.weight for block in blocks], [block.mlp.fc2.weight for block in blocks]


def _common(values: list[int]) -> PerBlock:
    """One value for all blocks, or one per block where they differ."""
    return values[0] if len(set(values)) == 1 else tuple(values)
