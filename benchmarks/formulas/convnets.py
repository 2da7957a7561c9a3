"""Convolutional networks, and adversarial training of them."""

from __future__ import annotations

from benchmarks.formulas import OPERATIONS, TRAINING

from atlas.study import Run


def preact_resnet(classes: int, pixels: int, widths: list[int], stem: int, blocks: int) -> tuple[float, float]:
    """Multiply-accumulates of a pre-activation ResNet of 3 × 3 convolutions, and those of its first layer."""
    first = pixels**2 * 27 * stem
    total, before, side = first, stem, pixels
    for stage, width in enumerate(widths):
        for block in range(blocks):
            changes = before != width or (stage and not block)
            side = side // 2 if stage and not block else side
            total += side**2 * (9 * before * width + 9 * width**2 + (before * width if changes else 0))
            before = width
    return total + before * classes, first


def vgg(classes: int, pixels: int, scale: float) -> tuple[float, float]:
    """VGG-16 with one linear layer."""
    plan = [64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0]
    total, before, side, first = 0.0, 3, pixels, 0.0
    for width in plan:
        after = round(width * scale)
        if not width:
            side //= 2
            continue
        total += side**2 * 9 * before * after
        first, before = first or total, after
    return total + before * classes, first


SHAPES = {"cifar10": (10, 32, 50_000, 10_000), "cifar100": (100, 32, 50_000, 10_000), "tiny-imagenet": (200, 64, 100_000, 10_000)}
"""Classes, pixels, training and test images."""


def convnet(run: Run) -> tuple[float, float]:
    """Multiply-accumulates of the row's network, and those of its first layer."""
    network = run.protocol_model().network
    classes, pixels, _, _ = SHAPES[run.data]
    scale = run.settings_model("small-dense").scale if run.recipe == ("small-dense",) else 1.0
    if network.name == "vgg16":
        return vgg(classes, pixels, scale)
    if network.name == "wide-resnet":
        return preact_resnet(classes, pixels, [round(10 * scale * base) for base in (16, 32, 64)], 16, 5)
    widths = [max(1, round(scale * width)) for width in (64, 128, 256, 512)]
    return preact_resnet(classes, pixels, widths, widths[0], 2)


def adversarial(run: Run) -> float:
    """K steps of the attack take two passes each and training three, whatever the mask: masked weights are computed as zeros.

    Each epoch attacks the validation images, and some epochs the test images. Robust Bird's first stage counts at its longest.
    """
    protocol = run.protocol_model()
    macs, first = convnet(run)
    _, _, available, tests = SHAPES[run.data]
    images = available - protocol.data.validation_size
    attacked = (2 * protocol.attack.train_steps + TRAINING) * macs - first
    watched = (2 * protocol.attack.monitor_steps + 2) * macs
    every = protocol.test_every
    looks = len({epoch for epoch in range(protocol.epochs) if (epoch + 1) % every == 0 or epoch + 1 == protocol.epochs})
    total = protocol.epochs * (images * attacked + protocol.data.validation_size * watched) + looks * tests * watched
    if run.recipe == ("robust-bird",):
        settings = run.settings_model("robust-bird")
        steps = {"standard": 0, "fast": 1, "pgd": protocol.attack.train_steps}[settings.stage]
        total += settings.max_epochs * images * ((2 * steps + TRAINING) * macs - first)
    return OPERATIONS * total


def cost_table(run: Run) -> float:
    """One image through the network of each of the paper's benchmarks."""
    widths = [64, 128, 256, 512]
    return OPERATIONS * sum(preact_resnet(classes, pixels, widths, 64, 2)[0] for classes, pixels, _, _ in SHAPES.values())
