"""Learned optimization: networks that are trained, optimizers that train them, and meta-training of the optimizers.

An update costs the gradient of the optimizee on a mini-batch, and what the optimizer computes at every coordinate. Meta-training
goes back through the optimizer alone, since what it is fed is detached; memories are zeros before a window's first update.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from benchmarks.formulas import OPERATIONS, TRAINING

from atlas.study import Run

IMAGES = {"mnist": (1, 28, 60_000), "cifar10": (3, 32, 50_000), "cifar100": (3, 32, 50_000)}
"""Channels, pixels on a side, and training images."""
CLASSES = {"mnist": 10, "cifar10": 10, "cifar100": 100}
POOLS = {"small": 2, "large": 6}
KINDS_OF_COORDINATES = 3
"""What a choice policy is told of a coordinate besides its members' steps and the time: of how many axes its tensor is."""
FEATURES = 2
"""What RNNprop is fed at each coordinate."""
FIELD_STEPS, FIELD_COORDINATES = 60, 64


@dataclass(frozen=True)
class Trained:
    """A network: multiply-accumulates of an image, those of its first layer, scalars, and tensors."""

    macs: float
    first: float
    scalars: int
    tensors: int
    batch: int

    @property
    def gradient(self) -> float:
        """Multiply-accumulates of a mini-batch's gradient."""
        return self.batch * (TRAINING * self.macs - self.first)

    @property
    def loss(self) -> float:
        """Multiply-accumulates of a mini-batch's loss."""
        return self.batch * self.macs


def perceptron(sizes: Sequence[int], batch: int) -> Trained:
    """Linear layers with biases."""
    products = [before * after for before, after in pairwise(sizes)]
    return Trained(sum(products), products[0], sum(products) + sum(sizes[1:]), 2 * len(products), batch)


def small_convnet(layers: Sequence[Any], channels: int, side: int, classes: int, batch: int) -> Trained:
    """Convolutions without padding, pooling by two, and a linear layer, all with biases."""
    products, scalars = [], 0
    for layer in layers:
        if layer == "pool":
            side //= 2
            continue
        width, kernel = layer
        side += 1 - kernel
        products.append(side**2 * kernel**2 * channels * width)
        scalars += kernel**2 * channels * width + width
        channels = width
    products.append(channels * side**2 * classes)
    return Trained(sum(products), products[0], scalars + products[-1] + classes, 2 * len(products), batch)


def optimizee(run: Run) -> Trained:
    """The network that optimizers are tuned and meta-trained on."""
    problem = run.protocol_model().train
    (channels, side, _), classes = IMAGES[run.data], CLASSES[run.data]
    if problem.family == "mlp":
        return perceptron([channels * side**2, *problem.hidden, classes], problem.batch_size)
    return small_convnet(problem.layers, channels, side, classes, problem.batch_size)


def meta_side(run: Run) -> tuple[float, float]:
    """Images that the meta-training side trains on, and those that it holds out."""
    data = run.protocol_model().data
    images = IMAGES[run.data][2] * (1 if data.shared else data.meta_fraction)
    return (1 - data.validation_fraction) * images, data.validation_fraction * images


def epoch(run: Run) -> float:
    """Updates of an epoch."""
    return meta_side(run)[0] // run.protocol_model().train.batch_size


def tuning(run: Run, optimizers: int = 1) -> float:
    """The whole grid from several starts, with a look at the validation images after each epoch."""
    network, settings = optimizee(run), run.protocol_model().tuning
    runs = optimizers * len(settings.grid) * settings.seeds
    each = epoch(run) * network.gradient + meta_side(run)[1] * network.macs
    return OPERATIONS * runs * settings.epochs * each


@dataclass(frozen=True)
class Policy:
    """Multiply-accumulates of an optimizer at one coordinate: all layers, and the first, whose inputs come without a history.

    ``always`` says that the first layer's inputs ask for no gradient at any update, else only at a window's first one.
    """

    layers: float
    first: float = 0.0
    always: bool = False

    def window(self, updates: int) -> float:
        """There and back, at one coordinate."""
        return updates * TRAINING * self.layers - (updates if self.always else 1) * self.first


def lstm(inputs: int, widths: Sequence[int]) -> list[float]:
    """LSTM cells on top of each other: four gates, of inputs, of the memory and of a bias."""
    return [4 * width * (before + width + 1) for before, width in zip([inputs, *widths], widths, strict=False)]


def cells(inputs: int, widths: Sequence[int], outputs: int = 1) -> Policy:
    """Cells that are fed what comes without a history, and a linear layer."""
    stack = lstm(inputs, widths)
    return Policy(sum(stack) + widths[-1] * outputs, stack[0])


RNNPROP = {"rp": (20, (20, 20)), "rp-small": (6, (7,))}
"""Width of the layer before the cells, and widths of the cells."""


def rnnprop(size: str) -> Policy:
    """A linear layer on two features, cells, a linear layer."""
    entry, widths = RNNPROP[size]
    return Policy(FEATURES * entry + sum(lstm(entry, widths)) + widths[-1], FEATURES * entry, always=True)


def scale_window(run: Run, network: Trained, updates: int) -> float:
    """L2O-Scale over a window, all coordinates together.

    Cells of coordinates see four means at four time scales each and the memories of their tensor and of the network. Shares of
    tensors are fixed, so that means over them, and what is spread from them, take two passes.
    """
    own, tensor, whole = run.settings_model(run.recipe[0]).hidden
    at_coordinate = 3 * own * (9 + tensor + whole + own) + 4 * own + 4
    shared = network.tensors * (tensor + own + 2)
    at_tensor = 3 * tensor * (own + whole + tensor)
    return updates * (network.scalars * (TRAINING * at_coordinate + 2 * shared) + TRAINING * network.tensors * at_tensor)


def policy_of(run: Run) -> Policy:
    """The optimizer that a row trains."""
    method, settings = run.recipe[0], run.settings_model(run.recipe[0])
    if method in RNNPROP:
        return rnnprop(settings.size)
    if method == "l2o-dm":
        return cells(1, settings.hidden)
    if method == "template-tuned":
        records = run.needed("template").needed("records")
        return Policy(FEATURES * records.settings_model(records.recipe[0]).lags)
    if method.startswith("choice-policy"):
        return choice(settings)
    return cells(FEATURES, settings.hidden)


def choice(settings: Any) -> Policy:
    """Cells on the steps of a pool, the time, and the kind of coordinate; a weight of each member."""
    members = POOLS[settings.pool]
    return cells(members + 1 + KINDS_OF_COORDINATES, settings.hidden, members)


def plain(run: Run) -> float:
    """Meta-training on the sum of losses, with that of the last parameters."""
    meta, network = run.settings_model(run.recipe[0]).meta, optimizee(run)
    gradients = meta.unroll + (meta.boundary != "none")
    if run.recipe[0] == "l2o-scale":
        own = scale_window(run, network, meta.unroll)
    else:
        own = network.scalars * policy_of(run).window(meta.unroll)
    return OPERATIONS * meta.windows * meta.instances * (gradients * network.gradient + own)


def curriculum(run: Run) -> float:
    """Meta-training in stages, if nothing is repeated.

    In training a loss of the window's start comes with every update, and the updates of the teachers; every draw begins with
    plain steps, the student's and each teacher's; validation looks at losses alone, after every period.
    """
    method, settings = run.recipe[0], run.settings_model(run.recipe[0])
    schedule, network, policy = settings.schedule, optimizee(run), policy_of(run)
    periods = 1 if schedule.fixed else schedule.min_periods + 1
    updates, side_by_side = schedule.unroll, settings.replicates * settings.trainer.instances
    teachers, taught = lessons(run, network)
    own = network.scalars * policy.window(updates)
    window = updates * (network.gradient + network.loss + taught) + own
    ascents = 1 if getattr(settings, "noise", "") == "adversarial" else 0
    windows = sum(depth * resets for depth, resets in zip(schedule.depth, schedule.resets, strict=True))
    trained = periods * windows * (1 + ascents) * window
    cold = schedule.cold_start
    draws = periods * sum(schedule.resets) - cold * schedule.resets[0]
    looks = (periods * len(schedule.depth) - cold) * schedule.validation_resets
    warmed = schedule.warmup * updates * (draws * (1 + teachers) + max(0, looks)) * network.gradient
    validated = periods * schedule.validation_resets * sum(schedule.validation_depth) * updates
    look = network.gradient + network.loss + network.scalars * policy.layers
    total = side_by_side * (trained + warmed + validated * look)
    if method.startswith("choice-policy"):  # and once more for the record, there and, to read its weights, again
        total += run.protocol_model().epochs * epoch(run) * (network.gradient + 2 * network.scalars * policy.layers)
    return OPERATIONS * total


def lessons(run: Run, network: Trained) -> tuple[int, float]:
    """How many teachers there are, and multiply-accumulates of an update of all of them."""
    if "choice" in run.needs:
        teacher = run.needed("choice")
        return 1, network.gradient + network.scalars * choice(teacher.settings_model(teacher.recipe[0])).layers
    if "teachers" not in run.needs or run.recipe[0].startswith("choice-policy"):
        return 0, 0.0
    count = 1 if run.recipe[0] == "stronger" else POOLS[run.settings_model(run.recipe[0]).pool]
    return count, count * network.gradient


def recording(run: Run) -> float:
    """A trained optimizer at work."""
    settings, network = run.settings_model(run.recipe[0]), optimizee(run)
    own = network.scalars * policy_of(run.needed("teacher")).layers
    return OPERATIONS * settings.runs * settings.steps * (network.gradient + own)


def equation(run: Run) -> float:
    """The network's own field: some steps of it at work, and its unrolled recurrence there and back to its inputs."""
    network, policy = optimizee(run), policy_of(run.needed("teacher"))
    seen = 2 * FIELD_STEPS * (network.gradient + network.scalars * policy.layers)
    coordinates = min(FIELD_COORDINATES, math.ceil(network.scalars / 7))
    return OPERATIONS * (seen + 3 * FIELD_STEPS * coordinates * policy.layers)


def learned(run: Run) -> float:
    """Any row of learned optimization; equations and templates that are fitted or taken as they are multiply no matrices."""
    method = run.recipe[0]
    if method.endswith("-records"):
        return recording(run)
    if method.endswith("-equation"):
        return equation(run)
    if method.startswith("symbolic") or method == "template":
        return 0.0
    settings = run.settings_model(method)
    if hasattr(settings, "schedule"):
        return curriculum(run)
    if hasattr(settings, "meta"):
        return plain(run)
    return tuning(run, POOLS[settings.pool] if method == "oracle" else 1)
