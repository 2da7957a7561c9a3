"""The hierarchical vision transformer: stem, four stages of pre-norm blocks with window attention, merges between them.

The layers are PyTorch's, so that the measures need no more than torch; stochastic depth is timm's.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from atlas.methods.as_vit.layout import (
    MAX_WIDTH,
    POSITIONS,
    SEARCH_WIDTH,
    SINGLE_BLOCKS,
    STRIDE,
    Stage,
    fitting_split,
    layout,
)
from atlas.methods.as_vit.settings import PositionEmbedding
from atlas.methods.as_vit.topology import Quadruple, Topology, quadruple
from atlas.nn.kinds import require_whole

if TYPE_CHECKING:
    from collections.abc import Mapping

INIT_STD = 0.02
SMALL_WINDOW = 16
"""Tokens of a window up to which attention is computed by plain matrix products."""

PUBLISHED: Mapping[str, str] = MappingProxyType(
    {
        "as-vit-small": "8,2,3,3|4,1,2,1|4,1,4,4|4,1,6,2|32,88",
        "as-vit-base": "8,2,3,3|4,1,2,1|4,1,4,5|4,1,6,2|32,116",
        "as-vit-large": "8,2,3,5|4,1,2,2|4,1,4,5|4,1,6,2|32,180",
    }
)
"""Name to architecture string. Large's string is the authors'; the depths and widths of Small and Base are inferred from the
parameter counts that later papers print. Those counts (29.0, 52.6 and 88.1 million) include a learned position embedding, which
the authors' released model does not have."""


@dataclass(frozen=True)
class Design:
    """Everything that :func:`build` was told, kept with the network so that its cost can be counted."""

    topology: Topology
    width: int = SEARCH_WIDTH
    depths: Quadruple = SINGLE_BLOCKS
    img_size: int = 224
    stride: int = STRIDE
    in_chans: int = 3
    num_classes: int = 1000
    max_width: int = MAX_WIDTH
    pos_embed: PositionEmbedding = POSITIONS
    drop_path: float = 0.0
    ceil: bool = False

    def options(self, **changes: Any) -> dict[str, Any]:
        """Return the keyword arguments of :func:`build` and ``count``, some of them changed."""
        values = {**vars(self), **changes}
        del values["topology"]
        return values


def dilation_for(kernel: int, stride: int) -> int:
    """Return the stem's dilation at a coarser stride: ``max(1, (stride − 1) // (kernel − 1))``.

    A kernel of 4 at strides 4, 8, 16 has dilations 1, 2, 5; a kernel of 8 has 1, 1, 2.
    """
    return max(1, (stride - 1) // (kernel - 1)) if kernel > 1 else 1


class Stem(nn.Module):
    """Convolution to tokens, then LayerNorm; stride and dilation may change while the weights stay."""

    def __init__(self, in_chans: int, width: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.kernel = kernel
        self.proj = nn.Conv2d(in_chans, width, kernel, stride)
        self.norm = nn.LayerNorm(width)

    def tokenize(self, stride: int, dilation: int) -> None:
        """Change stride and dilation, in pixels."""
        self.proj.stride = (stride, stride)
        self.proj.dilation = (dilation, dilation)

    def forward(self, images: Tensor) -> Tensor:
        """Cut images into tokens: (batch, channels, side, side) → (batch, tokens, width), rows first."""
        missing = max(0, self.proj.dilation[0] * (self.kernel - 1) + 1 - self.proj.stride[0])
        before, after = missing // 2, missing - missing // 2
        tokens = self.proj(functional.pad(images, (before, after, before, after)))
        return self.norm(tokens.flatten(2).transpose(1, 2))


class WindowAttention(nn.Module):
    """Softmax attention inside split × split windows that do not overlap; no shift, no relative bias."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self.heads, self.head_dim, self.split = stage.heads, stage.head_dim, stage.split
        self.qkv = nn.Linear(stage.width, 3 * stage.inner)
        self.proj = nn.Linear(stage.inner, stage.width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Mix tokens inside their windows: (batch, grid², width) → the same."""
        batch, count, _ = tokens.shape
        grid = math.isqrt(count)
        split = fitting_split(grid, self.split)
        windows = _cut(tokens, split, grid // split)
        qkv = self.qkv(windows).unflatten(-1, (3, self.heads, self.head_dim)).permute(2, 0, 3, 1, 4)
        mixed = _attend(*qkv.unbind(0))
        return _join(self.proj(mixed.transpose(1, 2).flatten(2)), batch, split, grid // split)


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Softmax attention of (windows, heads, tokens, head_dim); fused kernels lose to plain products in small windows."""
    if query.shape[-2] > SMALL_WINDOW:
        return functional.scaled_dot_product_attention(query, key, value)
    return (query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5).softmax(-1) @ value


def _cut(tokens: Tensor, split: int, window: int) -> Tensor:
    """Cut tokens into windows: (batch, grid², width) → (batch · split², window², width)."""
    if split == 1:
        return tokens
    batch, _, width = tokens.shape
    tiles = tokens.reshape(batch, split, window, split, window, width).transpose(2, 3)
    return tiles.reshape(batch * split**2, window**2, width)


def _join(windows: Tensor, batch: int, split: int, window: int) -> Tensor:
    """Undo :func:`_cut`: (batch · split², window², width) → (batch, grid², width)."""
    if split == 1:
        return windows
    width = windows.shape[-1]
    tiles = windows.reshape(batch, split, split, window, window, width).transpose(2, 3)
    return tiles.reshape(batch, (split * window) ** 2, width)


class Block(nn.Module):
    """Pre-norm transformer block: attention, then an FFN with exact GELU."""

    def __init__(self, stage: Stage, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(stage.width)
        self.attn = WindowAttention(stage)
        self.norm2 = nn.LayerNorm(stage.width)
        self.fc1 = nn.Linear(stage.width, stage.expansion * stage.width)
        self.fc2 = nn.Linear(stage.expansion * stage.width, stage.width)
        self.drop_path: nn.Module = nn.Identity()
        if drop_path:
            from timm.layers import DropPath

            self.drop_path = DropPath(drop_path)

    def forward(self, tokens: Tensor) -> Tensor:
        """Pass tokens through attention and FFN: (batch, tokens, width) → the same."""
        tokens = tokens + self.drop_path(self.attn(self.norm1(tokens)))
        return tokens + self.drop_path(self.fc2(functional.gelu(self.fc1(self.norm2(tokens)))))


class Merge(nn.Module):
    """Overlapping K × K patches at stride 2, LayerNorm, and a linear map to the next stage's width."""

    def __init__(self, kernel: int, width: int, out: int) -> None:
        super().__init__()
        self.kernel = kernel
        self.norm = nn.LayerNorm(kernel**2 * width)
        self.reduction = nn.Linear(kernel**2 * width, out, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Merge neighbours: (batch, grid², width) → (batch, ⌈grid/2⌉², out); an odd grid gets a row and a column of zeros."""
        batch, count, width = tokens.shape
        grid = math.isqrt(count)
        before, after = (self.kernel - 2) // 2, (self.kernel - 1) // 2 + grid % 2
        image = tokens.transpose(1, 2).reshape(batch, width, grid, grid)
        patches = functional.unfold(functional.pad(image, (before, after, before, after)), self.kernel, stride=2)
        return self.reduction(self.norm(patches.transpose(1, 2)))


class Level(nn.Module):
    """The blocks of one stage, after the merge that leads into it (none leads into the first)."""

    def __init__(self, merge: Merge | None, blocks: list[Block]) -> None:
        super().__init__()
        self.merge = merge
        self.blocks = nn.Sequential(*blocks)

    def forward(self, tokens: Tensor) -> Tensor:
        """Merge, then transform: (batch, tokens, width) → (batch, fewer tokens, larger width); the first stage keeps both."""
        return self.blocks(tokens if self.merge is None else self.merge(tokens))


class HierarchicalViT(nn.Module):
    """The network of a topology at given depths and width; made by :func:`build`.

    Attributes
    ----------
    design : Design
        What it was built from.
    stride : int
        Stride of the stem at present; ``design.stride`` is the finest.
    num_features : int
        Width of the last stage.
    """

    def __init__(self, design: Design) -> None:
        super().__init__()
        options = design.options()
        shapes = ("width", "depths", "img_size", "stride", "max_width", "ceil")
        stages = layout(design.topology, **{name: options[name] for name in shapes})
        self.design = design
        self.stride = design.stride
        self.num_features = stages[-1].width
        self.num_classes = design.num_classes
        self.stem = Stem(design.in_chans, design.width, design.topology.kernels[0], design.stride)
        self.pos_embed: nn.Parameter | None = None
        if design.pos_embed == "absolute":
            self.pos_embed = nn.Parameter(torch.zeros(1, stages[0].tokens, design.width))
        last = max(1, sum(design.depths) - 1)
        rates = iter([design.drop_path * index / last for index in range(sum(design.depths))])
        self.stages = nn.Sequential()
        for index, stage in enumerate(stages):
            merge = Merge(stage.kernel, stages[index - 1].width, stage.width) if index else None
            self.stages.append(Level(merge, [Block(stage, next(rates)) for _ in range(stage.depth)]))
        self.norm = nn.LayerNorm(self.num_features)
        self.head = nn.Sequential(
            OrderedDict(
                hidden=nn.Linear(self.num_features, self.num_features),
                tanh=nn.Tanh(),
                classifier=nn.Linear(self.num_features, design.num_classes),
            )
        )

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw the published initialisation.

        Linear weights are normal with standard deviation 0.02, biases 0 (the published cut at ±2 is a hundred deviations
        away); the stem's convolution keeps PyTorch's uniform ±1/√fan_in for weight and bias.
        """
        bound = 1 / math.sqrt(self.stem.proj.weight[0].numel())
        for parameter in self.stem.proj.parameters():
            nn.init.uniform_(parameter, -bound, bound, generator=generator)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=INIT_STD, generator=generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm):
                module.reset_parameters()
        if self.pos_embed is not None:
            nn.init.normal_(self.pos_embed, std=INIT_STD, generator=generator)

    def tokenize(self, stride: int, dilation: int) -> None:
        """Change stride and dilation of the stem; see :class:`~atlas.methods.as_vit.retokenize.ProgressiveTokenizer`."""
        self.stride = stride
        self.stem.tokenize(stride, dilation)

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that do not decay, as in timm."""
        return {"pos_embed"}

    def _tokens(self, images: Tensor) -> Tensor:
        """Tokens of the last stage, before the final norm."""
        if images.shape[-2:] != (self.design.img_size,) * 2:
            size = " × ".join(map(str, images.shape[-2:]))
            raise ValueError(f"images of {size} pixels; the network was built for {self.design.img_size}")
        tokens = self.stem(images)
        if self.pos_embed is not None:
            tokens = tokens + self._positions(self.pos_embed)
        return self.stages(tokens)

    def _positions(self, embedding: Tensor) -> Tensor:
        """The position embedding, averaged over the pixels of a coarser token."""
        factor = self.stride // self.design.stride
        if factor == 1:
            return embedding
        grid = math.isqrt(embedding.shape[1])
        image = embedding.transpose(1, 2).reshape(1, -1, grid, grid)
        return functional.avg_pool2d(image, factor).flatten(2).transpose(1, 2)

    def features(self, images: Tensor) -> Tensor:
        """Return what the measures look at: (batch, width), the mean over the last stage's tokens before the final norm."""
        return self._tokens(images).mean(1)

    def forward_features(self, images: Tensor) -> Tensor:
        """Return the normalised tokens of the last stage, (batch, tokens, width)."""
        return self.norm(self._tokens(images))

    def forward_head(self, tokens: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool tokens and classify them: (batch, classes), or (batch, width) with ``pre_logits``."""
        pooled = tokens.mean(1)
        return pooled if pre_logits else self.head(pooled)

    def forward(self, images: Tensor) -> Tensor:
        """Classify images: (batch, channels, side, side) → logits (batch, classes)."""
        return self.forward_head(self.forward_features(images))


def build(
    topology: Topology,
    *,
    width: int = SEARCH_WIDTH,
    depths: Sequence[int] = SINGLE_BLOCKS,
    img_size: int = 224,
    stride: int = STRIDE,
    in_chans: int = 3,
    num_classes: int = 1000,
    max_width: int = MAX_WIDTH,
    pos_embed: PositionEmbedding = POSITIONS,
    drop_path: float = 0.0,
    ceil: bool = False,
    generator: torch.Generator | None = None,
) -> HierarchicalViT:
    """Build a network at its published initialisation.

    Parameters
    ----------
    topology : Topology
        What is searched.
    width, depths : int, sequence of int
        Stem width d and blocks per stage, which growth chooses.
    img_size, stride, in_chans, num_classes : int
        Side of the images and stride of the stem in pixels, channels, classes.
    max_width : int
        Cap on the width of a stage.
    pos_embed : {"none", "absolute"}
        Whether a learned position embedding is added after the stem.
    drop_path : float
        Rate of stochastic depth in the last block, in [0, 1); it grows linearly from 0 at the first.
    ceil : bool
        Accept odd grids and splits that do not divide them; see :func:`~atlas.methods.as_vit.layout.layout`.
    generator : torch.Generator, optional
        Source of the weights; PyTorch's global one by default.

    Raises
    ------
    ValueError
        The shapes do not fit together; see :func:`~atlas.methods.as_vit.layout.layout`.
    """
    if pos_embed not in ("none", "absolute"):
        raise ValueError(f"pos_embed {pos_embed!r} is neither 'none' nor 'absolute'")
    if not 0 <= drop_path < 1:
        raise ValueError(f"drop_path {drop_path} is not in [0, 1)")
    require_whole(in_chans=in_chans, num_classes=num_classes)
    if in_chans < 1 or num_classes < 0:
        raise ValueError(f"{in_chans} channels and {num_classes} classes: at least 1 and 0 are needed")
    design = Design(
        topology,
        width,
        quadruple("depths", depths),
        img_size,
        stride,
        in_chans,
        num_classes,
        max_width,
        pos_embed,
        drop_path,
        ceil,
    )
    with torch.random.fork_rng(devices=[]):  # layers draw weights of their own, which are not kept
        model = HierarchicalViT(design)
    model.reset_parameters(generator)
    return model


def published(name: str, **changes: Any) -> Design:
    """Return the design of a published model: ``as-vit-small``, ``as-vit-base`` or ``as-vit-large``, as in the released code.

    ``changes`` are fields over it; ``pos_embed="absolute"`` gives the sizes that papers print.

    Raises
    ------
    ValueError
        There is no model of that name.
    """
    if name not in PUBLISHED:
        raise ValueError(f"there is no published model {name!r}; known: {', '.join(PUBLISHED)}")
    topology, depths, width = Topology.parse(PUBLISHED[name])
    design = Design(topology, depths=depths or SINGLE_BLOCKS, width=width or SEARCH_WIDTH)
    return replace(design, **changes)
