"""As-ViT's networks: what was published, found by search or grown, and the measures of untrained networks that search goes by."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from benchmarks.formulas import OPERATIONS, TRAINING
from benchmarks.formulas.transformers import images_trained

from atlas.study import Run

LARGE = "8,2,3,5|4,1,2,2|4,1,4,5|4,1,6,2|32,180"
PUBLISHED = {
    "as-vit-small": "8,2,3,3|4,1,2,1|4,1,4,4|4,1,6,2|32,88",
    "as-vit-base": "8,2,3,3|4,1,2,1|4,1,4,5|4,1,6,2|32,116",
    "as-vit-large": LARGE,
}
FIRST_TRIAL = "8,2,4,1|4,2,6,1|2,2,6,1|2,1,4,1|64,32"
"""What the policy of the search samples first, at the rehearsed seed."""
FOUND: dict[str, str] = {
    "as-vit-seed": "7,2,2,1|2,4,2,1|4,1,5,1|3,1,3,1|64,32",
    "random-search": "6,4,4,1|4,4,2,1|4,2,2,1|4,1,5,1|64,32",
    "merge-product": "6,4,4,1|4,2,4,1|4,1,4,1|4,1,4,1|32,32",
    "random-topology": "6,8,6,1|4,2,2,1|2,1,2,1|3,1,2,1|32,32",
    "as-vit": "7,2,2,6|2,4,2,4|4,1,5,2|3,1,3,3|64,240",
    "random-scaling": "7,2,2,5|2,4,2,4|4,1,5,4|3,1,3,5|64,148",
    "max-width-scaling": "7,2,2,2|2,4,2,2|4,1,5,2|3,1,3,6|64,140",
    "uniform-scaling": "7,2,2,6|2,4,2,6|4,1,5,6|3,1,3,6|64,120",
    "swin-like": "4,8,4,2|2,4,4,2|2,2,4,18|2,1,4,2|32,128",
}
"""What the rehearsal's short search and growth find in stand-in pictures; a rehearsal that finds others changes these lines."""
RANKED = (
    "4,4,3,1|4,2,3,1|4,2,4,1|4,1,2,1|16,32",
    "7,2,4,1|3,2,4,1|3,2,6,1|4,1,4,1|16,32",
    "4,4,3,1|4,4,6,1|4,2,2,1|3,1,2,1|16,32",
    "5,4,3,1|2,2,5,1|4,1,3,1|3,1,3,1|64,32",
)
"""Topologies that the rehearsal of the ranking study trains, each for a quarter of all."""
FUSED = 16
"""Tokens of a window from which on attention is one kernel, which computes queries with keys once more going back."""


class Stage(NamedTuple):
    """One stage: multiply-accumulates of its entry, and of the linear layers and of one product of its blocks; shapes."""

    entry: float
    linear: float
    product: float
    depth: int
    window: int
    tokens: int
    layers: tuple[tuple[int, int], ...]
    fan_in: int
    width: int


def stages(design: str, stride: int = 4, pixels: int = 224) -> Iterator[Stage]:
    """The four stages of ``kernel,windows per axis,expansion,depth|…|heads,width`` at a stride of the stem."""
    *parts, (heads, width) = [list(map(int, part.split(","))) for part in design.split("|")]
    grid, before = pixels // stride, 0
    for index, (kernel, splits, expansion, depth) in enumerate(parts):
        channels, own = min(1024, width * 2**index), heads // 2 ** (3 - index)
        inner = own * (channels // own)
        tokens, fan_in = grid**2, kernel**2 * (before or 3)
        cut = next(size for size in range(min(splits, grid), 0, -1) if grid % size == 0)
        window = (grid // cut) ** 2
        layers = ((channels, 3 * inner), (inner, channels), (channels, expansion * channels), (expansion * channels, channels))
        linear = tokens * sum(before * after for before, after in layers)
        yield Stage(fan_in * channels * tokens, linear, tokens * window * inner, depth, window, tokens, layers, fan_in, channels)
        before, grid = channels, -(-grid // 2)


def hierarchical(design: str, stride: int = 4, pixels: int = 224) -> float:
    """Multiply-accumulates of a training step, per image."""
    total, last = 0.0, 0
    for index, stage in enumerate(stages(design, stride, pixels)):
        products = 7 if stage.window > FUSED else 6
        total += (TRAINING if index else 2) * stage.entry + stage.depth * (TRAINING * stage.linear + products * stage.product)
        last = stage.width
    return total + TRAINING * (last**2 + last * 1000)


def trained_as_vit(run: Run) -> float:
    """A network at its finest tokenisation or, re-tokenised, at the three of the paper, one after the other."""
    design = {**PUBLISHED, **FOUND}[run.recipe[0]]
    phases = run.settings_model("retokenize").phases if "retokenize" in run.recipe else ((0.0, 4),)
    ends = [begin for begin, _ in phases[1:]] + [1.0]
    mean = sum((end - begin) * hierarchical(design, stride) for (begin, stride), end in zip(phases, ends, strict=True))
    return OPERATIONS * images_trained(run, run.protocol_model().epochs) * mean


def measured(design: str, points: int, images: int) -> float:
    """Multiply-accumulates of both measures of a network at one draw of its weights.

    The length of a curve: the network and its derivative along the curve at every point. A product of two that change has two
    derivatives; so has that with a weight, as torch computes it, with zeros for the weight's.

    The kernel: the network there and, without gradients of weights, back; then the inner products of the gradients of every
    weight, either token by token or of the gradients themselves, whichever is less.
    """
    curve = there = back = inner = 0.0
    for index, stage in enumerate(stages(design)):
        blocks = stage.depth * stage.linear
        products = stage.depth * stage.product
        curve += 3 * (stage.entry + blocks + 2 * products)
        there += stage.entry + blocks + 2 * products
        back += (stage.entry if index else 0) + blocks + (5 if stage.window > FUSED else 4) * products
        weights = [(stage.fan_in, stage.width), *stage.depth * stage.layers]
        inner += sum(inner_products(before, after, stage.tokens, images) for before, after in weights)
    return points * curve + images * (there + back) + inner


def inner_products(before: int, after: int, tokens: int, images: int) -> float:
    """Of the gradients of a weight (before, after), which is a sum over tokens, for all pairs of images."""
    by_token = images**2 * tokens**2 * (before + after)
    return min(by_token, images * tokens * before * after + images**2 * before * after)


def searched(run: Run) -> float:
    """Two searches as if all trials cost what the first one does, and a comparison of what they found with a third topology."""
    settings = run.settings_model("as-vit-search")

    def cost(design: str) -> float:
        return measured(design, settings.points, settings.images)

    trials = settings.steps * settings.repeats * (cost(FIRST_TRIAL) + cost(FOUND["random-search"]))
    compared = sum(cost(FOUND[name]) for name in ("as-vit-seed", "random-search", "merge-product"))
    return OPERATIONS * (trials + settings.check_repeats * compared)


def grown(run: Run) -> float:
    """Ten steps as if each cost what the first one does: a further block in any stage, at any of the next widths."""
    settings = run.settings_model("as-vit-growth")
    *parts, last = FOUND["as-vit-seed"].split("|")
    heads, widths = last.split(",")[0], sorted({round(settings.width0 * (1 + ratio)) for ratio in settings.ratios})
    total = 0.0
    for deeper in range(len(parts)):
        blocks = [part.rpartition(",")[0] + (",2" if index == deeper else ",1") for index, part in enumerate(parts)]
        for width in widths:
            total += measured("|".join([*blocks, f"{heads},{width}"]), settings.points, settings.images)
    return OPERATIONS * min(10, settings.max_steps) * settings.repeats * total


WIDEST = ("2,1,1,1,10", "2,1,1,2,12", "2,2,1,2,14", "3,2,1,2,17", "3,2,1,3,20", "3,2,1,4,24", "3,2,1,5,29")
"""Blocks of the stages, and width, in the steps of growth that takes the widest candidate, from the published topology."""
REHEARSED = (3, 2)
"""Points of a curve and images of a kernel in a rehearsal."""


def counted(run: Run) -> float:
    """What is measured to count the cost of a design: one draw of the published topology, and of each step of its growth."""
    stages = [stage.rpartition(",")[0] for stage in LARGE.split("|")[:-1]]
    total = 0.0
    for step in ("1,1,1,1,32", *WIDEST):
        *depths, width = step.split(",")
        blocks = [f"{stage},{depth}" for stage, depth in zip(stages, depths, strict=True)]
        total += measured("|".join([*blocks, f"32,{width}"]), *REHEARSED)
    return OPERATIONS * total


def ranked(run: Run) -> float:
    """A training of every topology; what is measured of them costs little beside it."""
    settings = run.settings_model("as-vit-ranking")
    mean = sum(map(hierarchical, RANKED)) / len(RANKED)
    return OPERATIONS * settings.topologies * images_trained(run, run.protocol_model().epochs) * mean
