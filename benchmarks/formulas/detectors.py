"""Mask R-CNN on feature pyramids: bodies, pyramids, and heads, whose work on masks depends on how many regions hold an object."""

from __future__ import annotations

from benchmarks.formulas import OPERATIONS, TRAINING
from benchmarks.formulas.hierarchical import stages

from atlas.study import Run

PICTURES = 118_287
"""Of COCO's train2017."""
CLASSES = 81
"""Eighty kinds of things, and none."""
ANCHORS, REGIONS, HOLDING = 3, 512, 128
"""At a place of a map; regions of a picture that the box head learns from; and how many of them at most hold an object."""
LEVELS = (4, 8, 16, 32, 64)
"""Strides of the maps."""
WIDER_WINDOWS = "8,8,3,5|4,4,2,2|4,4,4,5|4,4,6,2|32,180"
"""As-ViT-Large with windows at 1,024 pixels as large as at 224."""
DRAWN = "6,32,6,5|4,8,2,2|2,4,2,5|3,4,2,2|32,288"
"""The topology that the rehearsed seed draws, as deep, at the width of as many parameters, with its windows at 1,024 pixels."""


def residual(pixels: int) -> tuple[float, float, list[int]]:
    """ResNet-50 without its classifier: multiply-accumulates, those of its first layer, and channels of its four maps."""
    side = pixels // 2
    first = total = float(side**2 * 49 * 3 * 64)
    before, side, channels = 64, side // 2, []
    for stage, blocks in enumerate((3, 4, 6, 3)):
        inner = 64 * 2**stage
        for block in range(blocks):
            after = side // 2 if stage and not block else side
            total += side**2 * before * inner + after**2 * (9 * inner**2 + 4 * inner**2)
            total += 0 if block else after**2 * before * 4 * inner
            before, side = 4 * inner, after
        channels.append(before)
    return total, first, channels


def top_down(channels: list[int], pixels: int, width: int) -> float:
    """A pyramid of a map of each of the first four strides."""
    return sum((pixels // stride) ** 2 * (own * width + 9 * width**2) for own, stride in zip(channels, LEVELS, strict=False))


def simple(own: int, pixels: int, width: int) -> float:
    """ViTDet's pyramid of one map of stride 16: transposed convolutions to the finer maps, and two convolutions on each."""
    coarse = (pixels // 16) ** 2
    finer = coarse * 4 * own * (own // 2) * 2 + 4 * coarse * 4 * (own // 2) * (own // 4)
    return finer + top_down([own // 4, own // 2, own, own], pixels, width)


def heads(pixels: int, width: int, hidden: int, holding: int) -> float:
    """Proposals at every place, boxes of all regions, and masks of those that hold an object."""
    places = sum((pixels // stride) ** 2 for stride in LEVELS)
    proposals = places * (9 * width**2 + ANCHORS * 5 * width)
    boxes = REGIONS * (49 * width * hidden + hidden**2 + 5 * CLASSES * hidden)
    mask = 4 * 14**2 * 9 * width**2 + 14**2 * 4 * width**2 + 28**2 * width * CLASSES
    return proposals + boxes + holding * mask


def hierarchical_body(design: str, pixels: int) -> tuple[float, list[int]]:
    """A training step of As-ViT's stages, per picture, and channels of their maps."""
    total, channels = 0.0, []
    for index, stage in enumerate(stages(design, 4, pixels)):
        total += (TRAINING if index else 2) * stage.entry + stage.depth * (TRAINING * stage.linear + 7 * stage.product)
        channels.append(stage.width)
    return total, channels


def picture(run: Run, holding: int) -> float:
    """A training step, per picture, if so many of its regions hold an object."""
    protocol, settings = run.protocol_model(), run.settings_model(run.recipe[0])
    pixels, width = protocol.image_size, protocol.pyramid_channels
    if run.recipe[0] == "resnet50":
        macs, first, channels = residual(pixels)
        body, pyramid = TRAINING * macs - first, top_down(channels, pixels, width)
    elif run.recipe[0] == "plain-transformer":
        tokens, own = (pixels // 16) ** 2, settings.embed_dim
        linear, product = tokens * 12 * own**2, (tokens + 1) ** 2 * own
        body = 2 * tokens * own * 3 * 16**2 + settings.depth * (TRAINING * linear + 7 * product)
        pyramid = simple(own, pixels, width)
    else:
        body, channels = hierarchical_body(WIDER_WINDOWS if run.recipe[0] == "as-vit-detector" else DRAWN, pixels)
        pyramid = top_down(channels, pixels, width)
    return body + TRAINING * (pyramid + heads(pixels, width, protocol.representation, holding))


def detected(run: Run, holding: int) -> float:
    """A whole training in which so many regions of each picture hold an object."""
    protocol = run.protocol_model()
    return OPERATIONS * protocol.epochs * (PICTURES // protocol.batch_size) * protocol.batch_size * picture(run, holding)


def least(run: Run) -> float:
    """If no region ever held an object."""
    return detected(run, 0)


def most(run: Run) -> float:
    """If as many as can be always did."""
    return detected(run, HOLDING)
