"""Batches of the splits, as pixels in [0, 1] on the run's device.

Images stay uint8 on the device and are augmented there. The order of an epoch and every augmentation are functions of (seed,
epoch, position), so that training which starts again in the middle of an epoch sees the same batches, and that several ranks
see the images of one: each takes its rows of a batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from atlas.datasets import get_dataset
from atlas.datasets.images import IMAGES
from atlas.datasets.splits import balanced_order, stratified_split
from atlas.errors import UserError
from atlas.harness.files import read_tensors
from atlas.harness.seeds import derive_seed, generator, split_seed
from atlas.nn.augmentation import random_crops, random_flips, random_rotations
from atlas.nn.precision import weight_type
from atlas.nn.ranks import Share, here
from atlas.tasks.adversarial_robustness.protocol import Data, Protocol

if TYPE_CHECKING:
    from atlas.harness.run import Run

PERMUTATION_SEED = 10
"""Seed of the authors' permutation of Tiny-ImageNet's training images."""

Batches = Iterator[tuple[Tensor, Tensor]]
Split = tuple[Tensor, Tensor]


class RobustData:
    """The splits of one run.

    Attributes
    ----------
    classes : int
        Number of classes.
    shape : tuple of int
        (channels, height, width) of an image.
    """

    def __init__(self, run: Run, protocol: Protocol, device: torch.device) -> None:
        if not (run.data_folder / IMAGES).is_file():
            raise UserError(f"{run.cell}: {run.data} is not images in memory, as digits, CIFAR and Tiny-ImageNet are")
        self.seed, self.protocol, self.device = run.seed, protocol, device
        self.dtype = weight_type(protocol.precision)
        facts = get_dataset(run.data).facts
        self.classes = int(facts["classes"])  # type: ignore[call-overload]
        self.top = float(facts["top"])  # type: ignore[arg-type]
        splits = split_images(read_tensors(run.data_folder / IMAGES), protocol.data, run.seed, run.cell)
        self.shape: tuple[int, int, int] = tuple(splits["train"][0].shape[1:])  # type: ignore[assignment]
        splits["train"] = splits["train"][0], noisy_labels(splits["train"][1], protocol.data.label_noise, self.classes, run.seed)
        self.splits = {name: (images.to(device), labels.to(device)) for name, (images, labels) in splits.items()}
        channels = len(protocol.network.mean)
        if channels not in (0, self.shape[0]):
            raise UserError(f"{run.cell}: {run.data} has {self.shape[0]} channels, network.mean has {channels}")
        if protocol.drop_last and self.size("train") < protocol.batch_size:
            raise UserError(f"{run.cell}: batch_size {protocol.batch_size} exceeds the {self.size('train')} training images")
        ranks = here().size
        if protocol.batch_size % ranks:
            raise UserError(
                f"{run.cell}: batch_size {protocol.batch_size} does not divide by {ranks} ranks: a multiple of them can"
            )

    @property
    def steps_per_epoch(self) -> int:
        """Number of training batches in an epoch."""
        batches = self.size("train") / self.protocol.batch_size
        return int(batches) if self.protocol.drop_last else math.ceil(batches)

    def size(self, split: str) -> int:
        """Return the number of images of a split."""
        return len(self.splits[split][0])

    def pixels(self, images: Tensor) -> Tensor:
        """Scale whole-number images (batch, channels, height, width) to [0, 1], in the protocol's type."""
        pixels = (images.float() / self.top).to(self.dtype)
        return pixels.contiguous(memory_format=torch.channels_last) if self.protocol.channels_last else pixels

    def batch_size(self, step: int) -> int:
        """Images of the whole batch of a training step, over all ranks; the last one of an epoch may be smaller."""
        first = step % self.steps_per_epoch * self.protocol.batch_size
        return min(self.protocol.batch_size, self.size("train") - first)

    def train_batches(self, epoch: int, first: int = 0, purpose: str = "order", *, whole: bool = False) -> Batches:
        """Shuffled and augmented batches of an epoch, from batch ``first`` on; other purposes see other orders.

        One of several ranks gets its rows of each, or with ``whole`` all of it.
        """
        images, labels = self.splits["train"]
        size = self.protocol.batch_size
        order = torch.randperm(len(images), generator=generator(self.seed, purpose, epoch)).to(self.device)
        for index in range(first, self.steps_per_epoch):
            chosen = order[index * size : (index + 1) * size]
            share = None if whole else here().rows(len(chosen))
            if share is not None:
                chosen = chosen[share.places.to(self.device)]
            yield self._augmented(images[chosen], generator(self.seed, "augment", purpose, epoch, index), share), labels[chosen]

    def _augmented(self, images: Tensor, random: torch.Generator, share: Share | None) -> Tensor:
        settings = self.protocol.data
        if settings.crop_padding:
            images = random_crops(images, settings.crop_padding, random, share)
        if settings.flip:
            images = random_flips(images, random, share)
        pixels = self.pixels(images)
        return random_rotations(pixels, settings.rotation, random, share) if settings.rotation else pixels

    def batches(self, split: str, limit: int | None = None) -> Batches:
        """Batches of a split (of its first ``limit`` images) in its own order, without augmentation."""
        images, labels = self.splits[split]
        count = len(images) if limit is None else min(limit, len(images))
        for first in range(0, count, self.protocol.evaluation_batch_size):
            last = min(first + self.protocol.evaluation_batch_size, count)
            yield self.pixels(images[first:last]), labels[first:last]


def split_images(arrays: dict[str, Tensor], settings: Data, seed: int, who: str) -> dict[str, Split]:
    """Split a dataset's images (n, channels, height, width) and labels (n,) into train, validation and test.

    Raises
    ------
    UserError
        There are fewer images than the splits ask for.
    """
    images, labels = arrays["train_images"], arrays["train_labels"]
    if "test_images" in arrays:
        test = arrays["test_images"], arrays["test_labels"]
    else:
        kept, held = stratified_split(labels.numpy(), settings.test_fraction, split_seed(settings.test_split, seed))
        test = images[held], labels[held]
        images, labels = images[kept], labels[kept]
    if settings.split == "stratified":
        shown = torch.from_numpy(balanced_order(test[1].numpy()))
        test = test[0][shown], test[1][shown]
    order = _order(labels, settings, seed)
    train_size = len(order) - settings.validation_size if settings.train_size is None else settings.train_size
    if train_size < 1 or train_size + settings.validation_size > len(order):
        sizes = f"{max(train_size, 1)} training and {settings.validation_size} validation images"
        raise UserError(f"{who}: there are {len(order)} images for {sizes}; lower data.train_size or data.validation_size")
    train, validation = order[:train_size], order[len(order) - settings.validation_size :]
    return {"train": (images[train], labels[train]), "validation": (images[validation], labels[validation]), "test": test}


def _order(labels: Tensor, settings: Data, seed: int) -> Tensor:
    count = len(labels)
    if settings.split == "tail":
        return torch.arange(count)
    if settings.split == "stratified":
        return torch.from_numpy(balanced_order(labels.numpy()))
    random = PERMUTATION_SEED if settings.split == "permuted" else derive_seed(seed, "split") % 2**32
    return torch.from_numpy(np.random.RandomState(random).permutation(count))


def noisy_labels(labels: Tensor, share: float, classes: int, seed: int) -> Tensor:
    """Replace a share of the labels (n,), rounded to whole labels, by uniform draws."""
    if not share:
        return labels
    random = generator(seed, "label-noise")
    chosen = torch.randperm(len(labels), generator=random)[: round(share * len(labels))]
    changed = labels.clone()
    changed[chosen] = torch.randint(classes, (len(chosen),), generator=random)
    return changed
