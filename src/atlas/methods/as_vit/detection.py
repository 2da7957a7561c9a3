"""A network of the hierarchical space as the body of a detector: its four stages give maps of strides 4, 8, 16 and 32.

A detector's pictures are several times as large as a classifier's. Windows of attention keep about the side that they have at 224
pixels, so more of them are cut; the authors do not say what they did, and global attention over 256 × 256 tokens does not fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor, nn

from atlas.methods.as_vit.layout import Stage, fitting_split, layout
from atlas.methods.as_vit.network import Design, HierarchicalViT, build
from atlas.methods.as_vit.topology import Quadruple, Topology, quadruple

CLASSIFIER_PIXELS = 224


def detector_splits(topology: Topology, pixels: int, stride: int, reference: int = CLASSIFIER_PIXELS) -> Quadruple:
    """Splits at which windows are about as large as at the pixels that a topology was designed for.

    >>> detector_splits(Topology.parse("8,2,3|4,1,2|4,1,4|4,1,6|32")[0], 1024, 4)
    (8, 4, 4, 4)
    """
    splits = []
    for index, split in enumerate(topology.splits):
        grid, designed = pixels // stride >> index, reference // stride >> index
        window = max(1, designed // fitting_split(designed, split))
        splits.append(fitting_split(grid, max(split, grid // window)))
    return quadruple("splits", splits)


class FourStages(nn.Module):
    """The stem and the stages of a network, without its head: pictures to four maps.

    Attributes
    ----------
    widths : tuple of int
        Channels of the maps, finest first.
    """

    def __init__(self, network: HierarchicalViT, stages: Sequence[Stage]) -> None:
        super().__init__()
        self.stem, self.stages = network.stem, network.stages
        self.widths = tuple(stage.width for stage in stages)
        self.grids = tuple(stage.grid for stage in stages)

    def forward(self, images: Tensor) -> list[Tensor]:
        """(batch, channels, side, side) to maps (batch, width, grid, grid)."""
        tokens, maps = self.stem(images), []
        for stage, grid in zip(self.stages, self.grids, strict=True):
            tokens = stage(tokens)
            maps.append(tokens.transpose(1, 2).unflatten(2, (grid, grid)))
        return maps


def four_stages(design: Design, reference: int = CLASSIFIER_PIXELS) -> FourStages:
    """Build the body of a detector at the published initialisation; its windows are those of ``reference`` pixels."""
    topology = design.topology
    splits = detector_splits(topology, design.img_size, design.stride, reference)
    wider = replace(design, topology=replace(topology, splits=splits), pos_embed="none", num_classes=1)
    options = wider.options()
    shapes = {name: options[name] for name in ("width", "depths", "img_size", "stride", "max_width", "ceil")}
    stages = layout(wider.topology, **shapes)
    return FourStages(build(wider.topology, **options), stages)
