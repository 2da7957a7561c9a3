"""Shapes of a network before it is built, and its exact size and cost in closed form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from atlas.methods.as_vit.settings import ModelSettings, PositionEmbedding, SpaceSettings
from atlas.methods.as_vit.topology import STAGES, Quadruple, Topology, quadruple, require_topology
from atlas.nn.kinds import require_whole

DEFAULTS = SpaceSettings()
MAX_WIDTH, SEARCH_WIDTH, STRIDE = DEFAULTS.max_width, DEFAULTS.width, DEFAULTS.stride
POSITIONS = ModelSettings().pos_embed
SINGLE_BLOCKS: Quadruple = (1, 1, 1, 1)


@dataclass(frozen=True)
class Stage:
    """Shapes of one stage.

    Attributes
    ----------
    kernel : int
        K of the stem or merge that leads into the stage.
    grid : int
        Tokens per axis.
    width, heads, head_dim : int
        D, h, and ⌊D/h⌋; the inner width of attention is heads · head_dim ≤ D.
    split, window : int
        Windows per axis and tokens per window axis.
    expansion, depth : int
        FFN expansion and number of blocks.
    """

    kernel: int
    grid: int
    width: int
    heads: int
    head_dim: int
    split: int
    window: int
    expansion: int
    depth: int

    @property
    def tokens(self) -> int:
        """Number of tokens of the stage, grid²."""
        return self.grid**2

    @property
    def inner(self) -> int:
        """Inner width of attention, heads · head_dim."""
        return self.heads * self.head_dim


@dataclass(frozen=True)
class Counts:
    """Trainable parameters, and multiply-accumulates of one image (what the paper prints as FLOPs)."""

    params: int
    macs: int


def fitting_split(grid: int, split: int) -> int:
    """Return the largest divisor of ``grid`` that is at most ``split``: how a coarse grid is cut."""
    return next(size for size in range(min(split, grid), 0, -1) if grid % size == 0)


def layout(
    topology: Topology,
    *,
    width: int = SEARCH_WIDTH,
    depths: Sequence[int] = SINGLE_BLOCKS,
    img_size: int = 224,
    stride: int = STRIDE,
    max_width: int = MAX_WIDTH,
    ceil: bool = False,
) -> tuple[Stage, ...]:
    """Work out the shapes of the four stages.

    Parameters
    ----------
    width : int
        Stem width d; stage i has D = min(max_width, d·2^(i−1)).
    depths : sequence of int
        Blocks of each stage.
    img_size, stride : int
        Side of the images, and stride of the stem, in pixels.
    ceil : bool
        Round odd grids up in merges, and cut grids that the splits do not divide by the largest divisor below: for
        coarse tokenisations.

    Raises
    ------
    TypeError
        An argument is of another type; says what would be right.
    ValueError
        A grid is odd or not divisible by its split (without ``ceil``), the stride does not divide the image, the
        stem's kernel is smaller than its stride (without ``ceil``), or a stage has fewer channels than heads.
    """
    require_topology(topology)
    require_whole(width=width, img_size=img_size, stride=stride, max_width=max_width)
    depths = quadruple("depths", depths)
    if min(width, img_size, stride, max_width) < 1:
        raise ValueError(f"width {width}, img_size {img_size}, stride {stride} and max_width {max_width} must be positive")
    if img_size % stride:
        raise ValueError(f"stride {stride} does not divide the image's {img_size} pixels")
    if topology.kernels[0] < stride and not ceil:
        raise ValueError(f"the stem's kernel {topology.kernels[0]} is smaller than its stride {stride}: pixels would be skipped")
    stages = []
    grid = img_size // stride
    for index in range(STAGES):
        channels, heads, split = min(max_width, width * 2**index), topology.stage_heads[index], topology.splits[index]
        if channels < heads:
            raise ValueError(
                f"stage {index + 1} has {channels} channels for {heads} heads; the stem needs width ≥ {heads >> index}"
            )
        if grid % split and not ceil:
            raise ValueError(f"stage {index + 1}: a grid of {grid} × {grid} tokens cannot be split {split} × {split}")
        split = fitting_split(grid, split)
        expansion, depth, kernel = topology.expansions[index], depths[index], topology.kernels[index]
        stages.append(Stage(kernel, grid, channels, heads, channels // heads, split, grid // split, expansion, depth))
        if grid % 2 and index < STAGES - 1 and not ceil:
            raise ValueError(f"stage {index + 1}: an odd grid of {grid} × {grid} tokens cannot be merged by two")
        grid = -(-grid // 2)
    return tuple(stages)


def total_width(depths: Sequence[int], width: int, max_width: int = MAX_WIDTH) -> int:
    """Return the widths of all blocks together, Σ L_i D_i."""
    return sum(depth * min(max_width, width * 2**index) for index, depth in enumerate(quadruple("depths", depths)))


def count(
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
) -> Counts:
    """Count parameters and multiply-accumulates without building the network.

    MACs follow the published counter: normalisations, softmax and activations are free, and the mean over tokens counts twice.
    The arguments are those of :func:`~atlas.methods.as_vit.network.build`; ``drop_path`` costs nothing.
    """
    require_whole(in_chans=in_chans, num_classes=num_classes)
    shapes = {"width": width, "depths": depths, "img_size": img_size, "stride": stride, "max_width": max_width, "ceil": ceil}
    stages = layout(topology, **shapes)  # type: ignore[arg-type]
    first, last = stages[0], stages[-1]
    pixels = in_chans * topology.kernels[0] ** 2
    params = pixels * width + width + 2 * width
    macs = first.tokens * width * (pixels + 1)
    if pos_embed == "absolute":
        params += first.tokens * width
    for stage in stages:
        params += stage.depth * _block_params(stage)
        macs += stage.depth * _block_macs(stage)
    for before, after in pairwise(stages):
        patch = after.kernel**2 * before.width
        params += 2 * patch + patch * after.width
        macs += after.tokens * patch * after.width
    features = last.width
    params += 2 * features + features * (features + 1) + num_classes * (features + 1)
    macs += 2 * features * (last.tokens + 1) + features**2 + features * num_classes
    return Counts(params, macs)


def _block_params(stage: Stage) -> int:
    """Two LayerNorms, qkv and output projection of the inner width A, and the FFN; everything with bias."""
    width, inner, hidden = stage.width, stage.inner, stage.expansion * stage.width
    attention = 3 * inner * (width + 1) + width * (inner + 1)
    return 2 * width + attention + 2 * width + hidden * (width + 1) + width * (hidden + 1)


def _block_macs(stage: Stage) -> int:
    """Projections, T/w² windows of w⁴ logits and as many weighted sums, and the FFN."""
    tokens, width, inner = stage.tokens, stage.width, stage.inner
    attention = tokens * width * 3 * inner + 2 * tokens * stage.window**2 * inner + tokens * inner * width
    return attention + 2 * tokens * stage.expansion * width**2
