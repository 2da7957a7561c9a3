"""What a design without training costs, counted: operations and kernels of As-ViT's search and growth.

One draw of the weights is measured and counted for every kind of candidate; operations and kernels of the whole design follow
from how many candidates and draws it has. Beside it stands what a design with training would cost at the least: one epoch of
every topology that the search tries, as each would have to be trained to be compared by its accuracy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from atlas.methods.as_vit.growth import Growth, GrowthPlan
from atlas.methods.as_vit.layout import SEARCH_WIDTH, SINGLE_BLOCKS, count
from atlas.methods.as_vit.measures import MeasureSpec, measure
from atlas.methods.as_vit.network import build
from atlas.methods.as_vit.topology import SearchSpace, Topology
from atlas.nn.counts import counted_flops
from atlas.nn.meter import LiveMemory

if TYPE_CHECKING:
    from collections.abc import Sequence

    from atlas.methods.as_vit.settings import DesignCostSettings

TRAINING_PASSES = 3  # a forward pass, and a backward pass of twice its cost
FLOPS_PER_MAC = 2


@dataclass(frozen=True)
class Work:
    """Floating-point operations, and kernels that a card would launch."""

    flops: float = 0.0
    launches: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(self.flops + other.flops, self.launches + other.launches)

    def __mul__(self, times: float) -> Work:
        return Work(self.flops * times, self.launches * times)


def search_work(topology: Topology, settings: DesignCostSettings) -> Work:
    """What a search takes: every trial is a network like the one that is found."""
    return measured_once(topology, settings, SINGLE_BLOCKS, SEARCH_WIDTH) * (settings.trials * settings.repeats)


def measured_once(topology: Topology, settings: DesignCostSettings, depths: Sequence[int], width: int) -> Work:
    """What both measures of one draw of the weights take; values of the images do not matter."""
    images = torch.zeros(settings.images, settings.channels, settings.pixels, settings.pixels)
    images += torch.arange(settings.images).view(-1, 1, 1, 1)  # equal images have no kernel
    spec = MeasureSpec(1, settings.points, images)
    shapes: dict[str, Any] = {"img_size": settings.pixels, "in_chans": settings.channels, "depths": depths, "width": width}
    with LiveMemory() as operations, counted_flops() as counter:
        measure(lambda: build(topology, **shapes), spec, torch.Generator().manual_seed(0))
    return Work(float(counter.get_total_flops()), operations.operations)


def growth_work(topology: Topology, settings: DesignCostSettings) -> tuple[Work, int]:
    """What growth takes that always goes on with the widest candidate, as the published measures do, and its candidates.

    Each step's candidates differ by a block or by a few channels, so its widest stands for all of them.
    """
    plan = GrowthPlan(topology, target=settings.target, options={"img_size": settings.pixels, "in_chans": settings.channels})
    growth = Growth(plan, policy="max-width", generator=torch.Generator().manual_seed(0))
    total, candidates = Work(), 0
    for step in growth:
        tried = step.candidates
        total += measured_once(topology, settings, step.depths, step.width) * (tried * settings.repeats)
        candidates += tried
    return total, candidates


def training_work(settings: DesignCostSettings) -> Work:
    """One epoch of as many topologies as the search tries, drawn uniformly; its kernels are large, and not counted."""
    space, generator = SearchSpace.official(), torch.Generator().manual_seed(0)
    shapes: dict[str, Any] = {"width": SEARCH_WIDTH, "img_size": settings.pixels, "in_chans": settings.channels}
    macs = sum(count(space.sample(generator), depths=SINGLE_BLOCKS, **shapes).macs for _ in range(settings.trials))
    return Work(TRAINING_PASSES * FLOPS_PER_MAC * macs * settings.training_images)
