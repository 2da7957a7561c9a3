"""Clients of a federation that train networks of several widths."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from benchmarks.formulas import OPERATIONS, TRAINING
from benchmarks.formulas.convnets import preact_resnet

from atlas.study import Run

DIGITS5, CIFAR10 = 5 * 7438, 50_000
POST_PASSES = 20
"""Passes over a client's training images that measure batch statistics afterwards."""


def digit_cnn(width: float) -> tuple[float, float]:
    """Multiply-accumulates of the network for digits at a width, and those of its first layer."""
    one, two, three, four, five = (size * width for size in (64, 64, 128, 2048, 512))
    first = 28**2 * 25 * 3 * one
    convolutions = first + 14**2 * 25 * one * two + 7**2 * 25 * two * three
    return convolutions + 49 * three * four + four * five + five * 10, first


def slim_resnet(width: float) -> tuple[float, float]:
    """The same of PreAct-ResNet-18 for 32 × 32 pixels."""
    widths = [round(width * size) for size in (64, 128, 256, 512)]
    return preact_resnet(10, 32, widths, widths[0], 2)


WIDTHS = (0.125, 0.25, 0.5, 1.0)


def alexnet(width: float) -> tuple[float, float]:
    """The same of AlexNet for 256 × 256 pixels: convolutions on grids of 63, 31 and 15, and pooling to 6 × 6."""
    sizes = [round(width * size) for size in (64, 192, 384, 256, 256)]
    first = 63**2 * 121 * 3 * sizes[0]
    kernels = ((31, 25), (15, 9), (15, 9), (15, 9))
    convolutions = sum(side**2 * area * a * b for (side, area), a, b in zip(kernels, sizes, sizes[1:], strict=False))
    dense = width * 4096
    return first + convolutions + 36 * sizes[-1] * dense + dense**2 + dense * 10, first


NETWORKS = {"digit-cnn": digit_cnn, "preresnet18": slim_resnet, "alexnet": alexnet}


def client_budgets(count: int) -> list[float]:
    """Clients by ascending budget, in four runs as equal as can be."""
    return [WIDTHS[4 * client // count] for client in range(count)]


def trained_widths(method: str, settings: Any, budget: float) -> list[float]:
    """Networks that a client trains on each of its images."""
    if method.startswith("split-mix"):
        return [settings.atom] * round(budget / settings.atom)
    if method == "heterofl":
        return [budget]
    if method == "sheterofl":
        return [width for width in WIDTHS if width <= budget]
    return [getattr(settings, "width", 1.0)]


def attack_steps(run: Run) -> int:
    """Steps of the attack in training, if there is one."""
    attack = run.protocol_model().attack
    return attack.train_steps if attack else 0


NORMS = {
    "digit-cnn": (64, 64, 128, 2048, 512),
    "preresnet18": (64,) * 4 + (64,) + (128,) * 3 + (128,) + (256,) * 3 + (256,) + (512,) * 4,
    "alexnet": (64, 192, 384, 256, 256, 4096, 4096),
}
"""Channels of the networks' norms at full width."""
CODE = 128


def attacked_share(run: Run) -> float:
    """Share of a batch that once-for-all training attacks: the first images have λ = 0, as many as of each other λ."""
    batch = run.protocol_model().batch_size
    return 1 - max(2, math.ceil(batch / len(run.protocol_model().attack.lams))) / batch


def conditioned(run: Run, attacked: float) -> float:
    """Multiply-accumulates of a training image of a network that is told λ, if such a share of a batch is attacked.

    Its norms have small networks on a code. Attacks need no gradient of them, and the code has none.
    """
    protocol, steps = run.protocol_model(), attack_steps(run)
    macs, first = NETWORKS[protocol.network](1.0)
    channels = NORMS[protocol.network]
    embedding, rest = sum(2 * CODE * size for size in channels), sum(4 * size**2 for size in channels)
    passed = TRAINING * macs - first + 2 * embedding + TRAINING * rest
    return passed + attacked * (passed + steps * (2 * macs + embedding + rest))


def image_cost(run: Run, budgets: Sequence[float]) -> float:
    """Multiply-accumulates of a training image, averaged over clients: of all networks that its client trains on it.

    Attacked images cost two passes for each step of the attack.
    """
    protocol, method = run.protocol_model(), run.recipe[0]
    if method == "fedavg-oat":
        return conditioned(run, attacked_share(run))
    settings, network, steps = run.settings_model(method), NETWORKS[protocol.network], attack_steps(run)
    weight = getattr(settings, "lam", 0.0)

    def training_of(width: float) -> float:
        macs, first = network(width)
        clean, attacked = TRAINING * macs - first, (2 * steps + TRAINING) * macs - first
        return (clean if weight < 1 else 0) + (attacked if weight else 0)

    return sum(training_of(width) for budget in budgets for width in trained_widths(method, settings, budget)) / len(budgets)


def trained_image(run: Run) -> float:
    """Operations of a training image, where how many images there are is known only once they are there."""
    return OPERATIONS * image_cost(run, client_budgets(run.protocol_model().data.clients))


def federated(run: Run, each: float | None = None) -> float:
    """Minibatches of all clients, and looks at the widest model; ``each`` is what a training image costs, by default its own."""
    protocol, method = run.protocol_model(), run.recipe[0]
    settings, data, steps = run.settings_model(method), run.protocol_model().data, attack_steps(run)
    network = NETWORKS[protocol.network]
    images = DIGITS5 * data.train_parts / 10 if run.data == "digits5" else CIFAR10
    held = data.validation_fraction * images
    each = image_cost(run, client_budgets(data.clients)) if each is None else each
    share = (protocol.clients_per_round or data.clients) / data.clients
    widest = sum(network(width)[0] for width in trained_widths(method, settings, 1.0)[-8:])
    if method in ("sheterofl", "heterofl"):
        widest = network(1.0)[0]
    looks = math.ceil(protocol.rounds / protocol.validate_every)
    if method == "fedavg-oat":  # at λ = 0 and at the largest
        widest += sum(2 * CODE * size + 4 * size**2 for size in NORMS[protocol.network])
    passes = 1 + (2 * steps + 1 if getattr(settings, "lam", 0.0) or method == "fedavg-oat" else 0)
    post = POST_PASSES * (images - held) if getattr(settings, "statistics", "") == "post" else 0
    return OPERATIONS * (
        protocol.rounds * protocol.epochs * share * (images - held) * each + looks * widest * (held * passes + post)
    )


def budgets_rehearsed(run: Run) -> float:
    """How much more a training image costs the clients of a rehearsal, as many of each budget, than those of the study.

    The study's have budgets as equal as their number allows: of fifty 13, 12, 13 and 12. Batches of a rehearsal have two images,
    too few for norms of clean and of attacked ones, so that once-for-all training attacks both.
    """
    if run.recipe[0] == "fedavg-oat":
        return federated(run, conditioned(run, 1.0)) / federated(run)
    return image_cost(run, WIDTHS) / image_cost(run, client_budgets(run.protocol_model().data.clients))
