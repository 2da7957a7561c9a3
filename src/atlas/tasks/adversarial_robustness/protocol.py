"""The protocol of adversarial robustness: network, data, attacks, schedule. Defaults are the sparse-robust paper's on CIFAR-10.

T. Chen et al., *Sparsity Winning Twice*, ICLR 2022; schedule and attack are those of L. Rice, E. Wong, Z. Kolter,
*Overfitting in Adversarially Robust Deep Learning*, ICML 2020.
"""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt
from pydantic import model_validator

from atlas.datasets.splits import TestSplit
from atlas.settings import Count, Natural, Positive, Settings


class Network(Settings):
    """A network of :mod:`atlas.nn.convnets`.

    ``scale`` multiplies every width. ``widths`` are those of the MLP's hidden layers or of the small network's convolutions;
    ``depth`` and ``widening`` those of Wide ResNet. ``mean`` and ``std`` normalise pixels in [0, 1] inside the network; empty
    leaves them alone.
    """

    name: Literal["mlp", "convnet", "preact-resnet18", "vgg16", "wide-resnet"] = "preact-resnet18"
    scale: Positive = 1.0
    widths: tuple[Natural, ...] = (256, 256)
    depth: Natural = 34
    widening: Positive = 10.0
    mean: tuple[float, ...] = (0.4914, 0.4822, 0.4465)
    std: tuple[Positive, ...] = (0.2470, 0.2435, 0.2616)

    @model_validator(mode="after")
    def _consistent(self) -> Network:
        if len(self.mean) != len(self.std):
            raise ValueError(f"mean and std must be as many: {len(self.mean)} and {len(self.std)}")
        return self


class Data(Settings):
    """Splits and augmentation.

    Training images come first in an order and validation images last: ``tail`` is the order of the files, ``permuted`` one
    permutation that every run shares, ``per-seed`` a permutation by the run's seed. ``stratified`` is an order that every run
    shares, in which classes are evenly spread: training, validation, and the first test images (``test_images``,
    ``strong.images``) hold every class as often as all images do. ``train_size`` leaves images between them unused.
    ``test_fraction`` applies to datasets without an official test split; there ``test_split`` says whether all seeds share one
    (``shared``) or each draws its own (``per-seed``). ``label_noise`` is the share of training labels that are replaced by a
    uniform draw (which may be the right one).
    """

    split: Literal["tail", "permuted", "per-seed", "stratified"] = "tail"
    train_size: Natural | None = None
    validation_size: Natural = 5000
    test_fraction: Annotated[float, Gt(0), Lt(1)] = 0.3
    test_split: TestSplit = "shared"
    label_noise: Annotated[float, Ge(0), Lt(1)] = 0.0
    crop_padding: Count = 4
    flip: bool = True
    rotation: Annotated[float, Ge(0), Le(180)] = 0.0


class Attack(Settings):
    """Projected gradient ascent in ℓ∞, with random starts; pixels are in [0, 1].

    ``train_steps`` while training, in the mode ``bn_mode``; ``monitor_steps`` after every epoch; ``steps`` in the evaluation.
    """

    eps: Annotated[float, Ge(0), Le(1)] = 8 / 255
    step: Positive = 2 / 255
    train_steps: Natural = 10
    bn_mode: Literal["train", "eval"] = "train"
    monitor_steps: Natural = 20
    steps: Natural = 20

    @property
    def monitor_passes(self) -> int:
        """Passes over the network for each image that is watched: two for a step of the attack, two that measure the result."""
        return 2 * self.monitor_steps + 2


class Strong(Settings):
    """Stronger attacks on the first ``images`` test images, after PGD.

    ``margin_steps`` of PGD on the margin (C&W∞), and the standard AutoAttack where ``autoattack`` is on. An image counts as
    withstood if none of them fools the network.
    """

    images: Natural = 1000
    margin_steps: Natural = 20
    autoattack: bool = True


class Protocol(Settings):
    """What every row of a table shares.

    ``monitor_images`` limits the validation images that are attacked after each epoch; ``test_every`` attacks the test images
    too every so many epochs, for the curves only (0: never).
    """

    network: Network = Network()
    data: Data = Data()
    attack: Attack = Attack()
    strong: Strong = Strong()
    epochs: Natural = 200
    milestones: tuple[Natural, ...] = (100, 150)
    decay: Annotated[float, Gt(0), Le(1)] = 0.1
    batch_size: Natural = 128
    drop_last: bool = False
    learning_rate: Positive = 0.1
    momentum: Annotated[float, Ge(0), Lt(1)] = 0.9
    weight_decay: Annotated[float, Ge(0)] = 5e-4
    precision: Literal["float32", "bfloat16", "float64"] = "float32"
    channels_last: bool = False
    monitor_images: Natural | None = None
    test_every: Count = 0
    test_images: Natural | None = None
    evaluation_batch_size: Natural = 500

    def tested_epochs(self) -> list[int]:
        """Epochs (from 0) after which the test images are attacked: the first, every ``test_every``-th, and the last."""
        every = self.test_every
        return [epoch for epoch in range(self.epochs) if every and ((epoch + 1) % every == 0 or epoch in (0, self.epochs - 1))]

    @model_validator(mode="after")
    def _ascending(self) -> Protocol:
        if sorted(set(self.milestones)) != list(self.milestones):
            raise ValueError(f"milestones must ascend: {self.milestones}")
        return self


def learning_rate_at(epoch: int, base: float, milestones: tuple[int, ...], decay: float) -> float:
    """Return the rate of an epoch (from 0): multiplied by ``decay`` at each milestone reached.

    Examples
    --------
    >>> [round(learning_rate_at(epoch, 0.1, (100, 150), 0.1), 4) for epoch in (0, 99, 100, 150)]
    [0.1, 0.1, 0.01, 0.001]
    """
    return base * decay ** sum(epoch >= milestone for milestone in milestones)
